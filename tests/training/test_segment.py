"""Samples that hold labels, and the recipe that learns them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from chimap.parcellation import REGIONS, classes_of
from chimap.simulation.anatomy import label_head
from chimap.simulation.tissues import TISSUES
from chimap.training.augmentation import flipped
from chimap.training.recipes import segment
from chimap.training.recipes.segment import dice_missed, inverted, shown
from chimap.training.samples import SampleSettings, draw_batch, draw_sample

SETTINGS = SampleSettings(
    shape=(32, 28, 36), voxel_sizes=((4.0, 4.0, 4.0),), blobs=0.0, whole_brain=False, spread=0.0, mask_error=(0.0, 0.0)
)


def test_labels_match_chi(label_map):
    """Each tissue's chi is that of the table, up to its variation, veins and mixed voxels at its border."""
    sample = draw_sample([label_map], SETTINGS, 1)
    assert sample.labels is not None and sample.labels.shape == sample.chi.shape
    for name in ("thalamus", "white matter", "grey matter"):
        inside = (sample.labels == TISSUES[name].label) & sample.mask
        assert inside.sum() > 100
        assert float(sample.chi[inside].median()) == pytest.approx(TISSUES[name].chi, abs=0.01)
    assert not torch.isin(sample.labels[sample.mask], torch.tensor(TISSUES["bone"].label)).any()


def test_labels_are_stacked_and_flipped_with_the_rest(label_map):
    batch = draw_batch([label_map], SETTINGS, [4, 9])
    generator = torch.Generator()
    for seed in range(8):
        turned = flipped(batch, generator.manual_seed(seed))
        axes = [axis for axis in (1, 2) if torch.equal(turned.chi, batch.chi.flip(axis))]
        if axes:
            assert torch.equal(turned.labels, batch.labels.flip(axes[0]))
            return
    raise AssertionError("no seed flipped one axis alone")


def test_samples_stay_near_the_middle_if_asked(label_map):
    """With no reach, the middle of every sample is that of the brain, where the ball's thalamus is."""
    for seed in range(3):
        sample = draw_sample([label_map], replace(SETTINGS, reach=0.0), seed)
        assert sample.labels is not None
        assert int(sample.labels[16, 14, 18]) == TISSUES["thalamus"].label


def test_the_brains_box_is_where_the_brain_is(label_map):
    """Of a grid that holds all of it: the ball reaches 72 mm from its middle, more or less what scale and bend do."""
    wide = replace(SETTINGS, shape=(64, 64, 64), least_brain=0.05, bend=0.0, reach=0.2)
    batch = draw_batch([label_map], wide, [1, 2])
    for mask, (middle, half) in zip(batch.mask, batch.brain, strict=True):
        at = (mask.nonzero() - 31.5) * 4
        low, high = at.amin(dim=0), at.amax(dim=0)
        torch.testing.assert_close(middle, (low + high) / 2, atol=4, rtol=0)
        torch.testing.assert_close(half, (high - low) / 2, atol=6, rtol=0)
    turned = flipped(batch, torch.Generator().manual_seed(1))
    assert (turned.brain[:, 0].abs() == batch.brain[:, 0].abs()).all()


def test_place_is_lost_now_and_then_and_never_far_off(label_map):
    batch = draw_batch([label_map], SETTINGS, [2])
    seen = [shown(batch, torch.Generator().manual_seed(seed))[:, 2:] for seed in range(40)]
    known = [one for one in seen if one.any()]
    assert 30 <= len(known) < 40
    spread = torch.stack([one[0, 0][batch.mask[0]].mean() for one in known])
    assert 0.005 < float(spread.std()) < 0.1


def test_the_network_is_shown_an_inversion_not_the_truth(label_map):
    batch = draw_batch([label_map], replace(SETTINGS, field_error=(0.0, 0.0), snr=(1e5, 1e5)), [2])
    inside = batch.mask[0]
    for seed in range(6):
        chi = inverted(batch, torch.Generator().manual_seed(seed))
        alike = torch.corrcoef(torch.stack([chi[0][inside], batch.chi[0][inside]]))[0, 1]
        assert 0.5 < alike < 0.999
        assert not chi[~batch.mask].any()


def test_magnitude_is_missing_now_and_then(label_map):
    batch = draw_batch([label_map], SETTINGS, [2])
    seen = [bool(shown(batch, torch.Generator().manual_seed(seed))[:, 0].any()) for seed in range(40)]
    assert 0.6 < sum(seen) / 40 < 0.95


class Knowing(nn.Module):
    """Finds what it was told."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, channels):
        return nn.functional.one_hot(self.classes, len(REGIONS) + 1).movedim(-1, 1).float() * 20


def test_the_score_is_what_dice_lacks(label_map):
    sample = draw_sample([label_map], SETTINGS, 3)
    assert sample.labels is not None
    truth = classes_of(sample.labels)[None]
    assert dice_missed(Knowing(truth), [sample]) == pytest.approx(0, abs=1e-4)
    assert dice_missed(Knowing(torch.zeros_like(truth)), [sample]) == pytest.approx(100)
    thalamus = truth == list(REGIONS).index("thalamus") + 1
    regions = len(truth[sample.mask[None]].unique()) - int((truth == 0)[sample.mask[None]].any())
    found = dice_missed(Knowing(truth * ~thalamus), [sample])
    assert found == pytest.approx(100 / regions, rel=1e-4)


def test_a_perfect_network_has_almost_no_loss(label_map):
    batch = draw_batch([label_map], SETTINGS, [3])
    settings = segment.SIZES["segment"]["cpu"]
    losses = {}
    for seed in range(6):  # with a generator that does not flip, the stub is right
        for name, classes in (("right", classes_of(batch.labels)), ("none", torch.zeros_like(batch.labels).long())):
            parts = segment.loss(Knowing(classes), batch, settings, 0, torch.Generator().manual_seed(seed))
            losses.setdefault(name, []).append(float(parts["loss"]))
    assert min(losses["right"]) < 1e-3 and min(losses["none"]) > 1


def test_whole_heads_have_the_labels_of_their_map(label_map):
    head = label_head(label_map, (48, 48, 48), (4.0, 4.0, 4.0), veins=False, seed=0)
    names = ["", *REGIONS]
    found = {names[index] for index in classes_of(head.labels).unique().tolist()}
    assert found == {"", "thalamus", "white matter", "grey matter"}
