import pytest

from chimap import methods
from chimap.errors import InputError
from chimap.plan import PLANS, plan_named


@pytest.mark.parametrize("method", methods.METHODS, ids=lambda method: f"{method.stage}-{method.name}")
def test_every_row_points_to_a_function_with_a_source(method):
    assert callable(method.load())
    assert (method.load().__doc__ or "").strip()
    assert method.summary and method.needs and method.cost
    assert "doi:10." in method.reference


def test_names_are_unique_within_a_stage():
    pairs = [(method.stage, method.name) for method in methods.METHODS]
    assert len(pairs) == len(set(pairs))


def test_every_plan_names_methods_that_exist():
    for plan in PLANS.values():
        for stage in ("mask", "unwrap", "background", "inversion"):
            methods.find(getattr(plan, stage), stage)


def test_settings_are_read_as_the_type_of_the_default():
    found = methods.settings_from_text(["tkd.threshold=0.2", "tkd.correct_underestimation=yes", "tv.iterations=7"])
    assert found == {"tkd": {"threshold": 0.2, "correct_underestimation": True}, "tv": {"iterations": 7}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("threshold=0.2", "needs METHOD.PARAMETER=VALUE"),
        ("tkd.threshold", "needs METHOD.PARAMETER=VALUE"),
        ("medi2.x=1", "no method is called 'medi2'"),
        ("tkd.lambda=1", "tkd has no parameter 'lambda'; it has threshold"),
        ("tv.iterations=many", "'many' cannot be read like the default 50"),
        ("tkd.correct_underestimation=perhaps", "cannot be read like the default False"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_by_name(text, message):
    with pytest.raises(InputError, match=message):
        methods.settings_from_text([text])


def test_unknown_methods_and_plans_are_refused_with_the_known_ones():
    with pytest.raises(InputError, match="no inversion method is called 'medi2'; there are tkd"):
        methods.find("medi2", "inversion")
    with pytest.raises(InputError, match="no plan is called 'fast'; there are quick"):
        plan_named("fast")


def test_a_plan_changes_only_what_is_given():
    plan = plan_named("default", inversion="tkd", unwrap=None)
    assert plan.inversion == "tkd"
    assert plan.unwrap == PLANS["default"].unwrap


def test_settings_of_a_plan_and_of_the_user_come_together():
    plan = plan_named("best", settings={"tv": {"iterations": 7}, "pdf-tv": {"rounds": 2}})
    assert plan.settings["tv"] == {"iterations": 7}
    assert plan.settings["pdf-tv"] == {**PLANS["best"].settings["pdf-tv"], "rounds": 2}
    assert plan_named("best").settings == PLANS["best"].settings
