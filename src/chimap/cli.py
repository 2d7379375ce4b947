"""The command line. Imports what a command needs when it runs, so that help and the table answer at once."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from chimap import __version__, methods
from chimap.errors import InputError
from chimap.plan import PLANS, Plan, plan_named


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 2 after bad input, explained in one sentence, or the command's own."""
    # Threads that wait for each other spin for milliseconds by default; where something else needs the cores, that
    # made an inversion ten times slower. Read when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    command = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(command)
    try:
        status = options.function(options, ["chimap", *command])
    except InputError as problem:
        print(f"chimap: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("chimap: interrupted; nothing was written", file=sys.stderr)
        return 130
    return status or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chimap",
        description="Quantitative susceptibility mapping: from MRI phase to magnetic susceptibility.",
    )
    parser.add_argument("--version", action="version", version=f"chimap {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="an acquisition to chi, fields and a report")
    source = run.add_argument_group("input")
    source.add_argument("--phase", nargs="+", type=Path, metavar="FILE", help="one 4D NIfTI, or one 3D file per echo")
    source.add_argument("--magnitude", nargs="+", type=Path, default=[], metavar="FILE", help="likewise")
    source.add_argument("--dicom", type=Path, metavar="DIR", help="a folder of DICOM files instead")
    source.add_argument(
        "--series", nargs="+", type=int, default=[], metavar="N", help="of --dicom: numbers as in `chimap dicom DIR`"
    )
    source.add_argument("--mask", type=Path, metavar="FILE", help="brain mask; made from the data if not given")
    source.add_argument(
        "--segmentation",
        type=Path,
        metavar="FILE",
        help="regions, such as FreeSurfer's aseg or a lesion mask with a table of names beside it (.tsv)",
    )
    _add_told(source)
    _add_plan(run)
    run.add_argument("--output", type=Path, required=True, metavar="DIR")
    run.add_argument("--write-dicom", action="store_true", help="also chi as a DICOM series of the patient of --dicom")
    run.set_defaults(function=_run)

    dicom = commands.add_parser("dicom", help="what a folder of DICOM files holds, and what of it can be used")
    dicom.add_argument("folder", type=Path, metavar="DIR")
    dicom.set_defaults(function=_dicom)
    bids = commands.add_parser("bids", help="every acquisition of a BIDS dataset, and a table of all")
    bids.add_argument("dataset", type=Path, metavar="BIDS_DIR")
    bids.add_argument("output", type=Path, metavar="OUTPUT_DIR")
    bids.add_argument("level", choices=("participant", "group"), help="maps of everybody, or one table of all maps")
    which = bids.add_argument_group("which acquisitions")
    which.add_argument(
        "--participant-label", "--participant_label", nargs="+", metavar="LABEL", help="all if not given"
    )
    which.add_argument("--session-label", "--session_label", nargs="+", metavar="LABEL", help="all if not given")
    which.add_argument(
        "--skip-bids-validation",
        "--skip_bids_validation",
        action="store_true",
        help="go on without a dataset_description.json",
    )
    which.add_argument("--masks", type=Path, metavar="DIR", help="derivatives with brain masks (*_desc-brain_mask)")
    which.add_argument("--segmentations", type=Path, metavar="DIR", help="derivatives with segmentations (*_dseg)")
    which.add_argument("--overwrite", action="store_true", help="make again what is there")
    _add_told(bids.add_argument_group("what JSON does not say"))
    _add_plan(bids)
    where = bids.add_argument_group("where")
    where.add_argument("--workers", type=int, metavar="N", help="at once; as many as fit if not given, 0: no Dask")
    where.add_argument("--threads", type=int, metavar="N", help="of a worker; cores are shared out if not given")
    where.add_argument("--memory", type=float, metavar="GIB", help="limit of a worker; shared out if not given")
    where.add_argument("--retries", type=int, default=2, metavar="N", help="after a worker's death or an error; 2")
    where.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster that runs: tcp://HOST:PORT")
    where.add_argument("--slurm", action="store_true", help="workers are Slurm jobs, by dask-jobqueue")
    where.add_argument(
        "--slurm-directive", action="append", default=[], metavar="OPTION", help='of sbatch: "--partition=long"'
    )
    where.add_argument("--walltime", metavar="HH:MM:SS", help="of a Slurm job")
    bids.set_defaults(function=_bids)

    invert = commands.add_parser("invert", help="a local field to chi")
    invert.add_argument("--local-field", type=Path, required=True, metavar="FILE")
    invert.add_argument("--mask", type=Path, required=True, metavar="FILE")
    invert.add_argument("--magnitude", type=Path, metavar="FILE", help="weighs the data where the method can use it")
    invert.add_argument("--csf", type=Path, metavar="FILE", help="mask of the fluid in the ventricles, for medi+0")
    invert.add_argument("--b0-dir", nargs=3, type=float, metavar=("X", "Y", "Z"), help="else from the affine")
    invert.add_argument("--units", choices=("ppm", "hz", "rad"), help="of the local field; ppm if not given")
    invert.add_argument("--field-strength", type=float, metavar="T", help="tesla, for --units hz and rad, ndi and medi")
    invert.add_argument("--echo-time", type=float, metavar="S", help="seconds, for --units rad, ndi and medi")
    invert.add_argument("--method", default="tv", metavar="NAME", help=", ".join(methods.names("inversion")))
    invert.add_argument("--reference", choices=("mask", "none"), default="none", help="what chi is relative to")
    _add_settings(invert)
    _add_choice(invert)
    invert.add_argument(
        "--field-error",
        type=float,
        metavar="PPM",
        help="SD of the local field's error, for --choose-regularisation discrepancy; estimated if not given",
    )
    invert.add_argument("--resume", action="store_true", help="go on where zs-uqsm+ or dip was stopped")
    invert.add_argument("--output", type=Path, required=True, metavar="FILE")
    invert.set_defaults(function=_invert)

    cosmos = commands.add_parser("cosmos", help="local fields of a head in several orientations to one chi")
    cosmos.add_argument("--local-field", nargs="+", type=Path, required=True, metavar="FILE", help="one for each scan")
    cosmos.add_argument("--mask", nargs="+", type=Path, required=True, metavar="FILE", help="likewise")
    cosmos.add_argument("--magnitude", nargs="+", type=Path, default=[], metavar="FILE", help="weighs the data")
    where = cosmos.add_mutually_exclusive_group()
    where.add_argument(
        "--transforms",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="for each scan a text file with the 4 x 4 matrix from its scanner coordinates [mm, right front up] to a "
        "space in which the head lies still, such as those of the first scan",
    )
    where.add_argument("--register", action="store_true", help="find them from the magnitudes; needs SimpleITK")
    cosmos.add_argument(
        "--b0-dir",
        nargs="+",
        type=float,
        metavar="X Y Z",
        help="in its own voxel axes, three numbers for each scan; else from the affines",
    )
    cosmos.add_argument("--units", choices=("ppm", "hz", "rad"), help="of the local fields; ppm if not given")
    cosmos.add_argument("--field-strength", type=float, metavar="T", help="tesla, for --units hz and rad")
    cosmos.add_argument("--echo-time", type=float, metavar="S", help="seconds, for --units rad")
    cosmos.add_argument("--reference", choices=("mask", "none"), default="none", help="what chi is relative to")
    _add_settings(cosmos)
    cosmos.add_argument("--output", type=Path, required=True, metavar="FILE")
    cosmos.set_defaults(function=_cosmos)

    evaluate = commands.add_parser("evaluate", help="how far a chi map is from the truth")
    evaluate.add_argument("chi", type=Path, metavar="CHI", help="the map in question [ppm]")
    evaluate.add_argument("--truth", type=Path, required=True, metavar="FILE", help="on the same grid [ppm]")
    evaluate.add_argument("--mask", type=Path, metavar="FILE", help="where the truth is not zero if not given")
    evaluate.add_argument(
        "--segmentation",
        type=Path,
        metavar="FILE",
        help="regions: named by a .tsv beside it, else numbers of the 2019 challenge or of FreeSurfer",
    )
    evaluate.add_argument("--output", type=Path, metavar="FILE", help="JSON; beside CHI if not given")
    evaluate.set_defaults(function=_evaluate)

    simulate = commands.add_parser("simulate", help="acquisitions with known truth, as a BIDS dataset")
    simulate.add_argument(
        "--labels",
        nargs="+",
        type=Path,
        default=[],
        metavar="PATH",
        help="label maps with FreeSurfer's numbers, folders of them, or a packed file; else the built-in head",
    )
    simulate.add_argument("--subjects", type=int, default=1, metavar="N")
    simulate.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed writes the same bytes")
    simulate.add_argument("--shape", nargs=3, type=int, metavar=("X", "Y", "Z"), help="grid; 176 x 224 x 176 mm")
    simulate.add_argument("--voxel-size", nargs=3, type=float, default=(1.0, 1.0, 1.0), metavar=("X", "Y", "Z"))
    simulate.add_argument("--b0-dir", nargs=3, type=float, metavar=("X", "Y", "Z"), help="B0 in voxel axes")
    simulate.add_argument(
        "--head-rotation",
        nargs=3,
        type=float,
        metavar=("X", "Y", "Z"),
        help="degrees about the scanner's axes, in turn: another acquisition of the same person",
    )
    simulate.add_argument("--field-strength", type=float, default=3.0, metavar="T")
    simulate.add_argument(
        "--echo-times", nargs="+", type=float, default=(0.004, 0.010, 0.016, 0.022, 0.028), metavar="S"
    )
    simulate.add_argument("--snr", type=float, default=50.0, help="of the brain at the first echo")
    simulate.add_argument(
        "--field-error",
        type=float,
        default=0.3,
        metavar="SHARE",
        help="of the local field's SD that obeys no dipole model; about 0.5 on people",
    )
    simulate.add_argument(
        "--lesions",
        nargs="+",
        default=[],
        metavar="NAME[:PPM[:MM]]",
        help="haemorrhage, calcification, microbleed or microbleeds, with chi and radius if they shall not be drawn",
    )
    simulate.add_argument("--vendor", choices=("radians", "siemens", "philips", "ge"), default="radians")
    simulate.add_argument("--phase-sign", type=int, choices=(1, -1), help="if another than the vendor's")
    simulate.add_argument("--output", type=Path, required=True, metavar="DIR")
    simulate.set_defaults(function=_simulate)

    pack = commands.add_parser("pack", help="label maps as one small file, for training")
    pack.add_argument("labels", nargs="+", type=Path, metavar="PATH", help="label maps or folders of them")
    pack.add_argument("--output", type=Path, required=True, metavar="FILE.npz")
    pack.set_defaults(function=_pack)

    train = commands.add_parser("train", help="a network, on simulated samples")
    train.add_argument("recipe", metavar="RECIPE", help="uqsm+, qsmnet+, nextqsm, iqsm+, …: see docs/how-to/train.md")
    train.add_argument("--data", type=Path, required=True, metavar="PACKED", help="people to learn from: chimap pack")
    train.add_argument("--validation", type=Path, metavar="PACKED", help="people to judge by; else a seventh of --data")
    train.add_argument("--size", choices=("gpu", "cpu"), help="of the recipe; that of the device if not given")
    train.add_argument("--device", metavar="D", help="cpu, cuda; a GPU where there is one if not given")
    train.add_argument("--steps", type=int, metavar="N")
    train.add_argument("--seed", type=int, metavar="S")
    train.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting, such as batch=4 or network.base=16"
    )
    train.add_argument("--minutes", type=float, metavar="M", help="stop with a checkpoint after so long")
    train.add_argument("--start", metavar="WEIGHTS", help="to begin with: a best.safetensors, or a method's name")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --output")
    train.add_argument("--output", type=Path, required=True, metavar="DIR")
    train.set_defaults(function=_train)

    demo = commands.add_parser("demo", help="simulate a head, reconstruct it and compare with the truth")
    demo.add_argument("--output", type=Path, default=Path("demo"), metavar="DIR")
    demo.add_argument("--shape", nargs=3, type=int, default=(160, 192, 160), metavar=("X", "Y", "Z"))
    demo.add_argument("--voxel-size", nargs=3, type=float, default=(1.0, 1.0, 1.0), metavar=("X", "Y", "Z"))
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(function=_demo)

    benchmark = commands.add_parser("benchmark", help="methods on heads with known truth: tables and pictures")
    benchmark.add_argument("--methods", nargs="+", metavar="NAME", help="all if not given")
    benchmark.add_argument(
        "--cases",
        nargs="+",
        metavar="NAME",
        help='names, their beginnings, or patterns as "*-real"; all if not given',
    )
    benchmark.add_argument(
        "--labels",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="label maps of people whom no training has seen, packed or as NIfTI; the built-in head if not given",
    )
    size = benchmark.add_mutually_exclusive_group()
    size.add_argument("--scale", choices=("quick", "full"), default="full", help="quick: voxels twice as long")
    size.add_argument(
        "--shape", nargs=3, type=int, metavar=("X", "Y", "Z"), help="another grid over the same field of view"
    )
    benchmark.add_argument(
        "--device", default="cpu", metavar="NAME", help="where methods run, such as cuda; cpu if not given"
    )
    benchmark.add_argument("--output", type=Path, default=Path("benchmark"), metavar="DIR")
    benchmark.set_defaults(function=_benchmark)

    table = commands.add_parser("methods", help="what can be chosen for every stage")
    table.set_defaults(function=_methods)
    return parser


def _add_told(group: argparse._ActionsContainer) -> None:
    group.add_argument("--echo-times", nargs="+", type=float, metavar="S", help="seconds, where no JSON has them")
    group.add_argument("--field-strength", type=float, metavar="T", help="tesla, where no JSON has it")
    group.add_argument(
        "--b0-dir",
        nargs=3,
        type=float,
        metavar=("X", "Y", "Z"),
        help="B0 in voxel axes; else from the affine",
    )
    group.add_argument(
        "--phase-range",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="stored values that stand for -pi and pi, such as 0 4095 or -4096 4094",
    )
    group.add_argument("--phase-sign", type=int, choices=(1, -1), help="-1 if phase falls where the field is stronger")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    plan = parser.add_argument_group("what to do")
    plan.add_argument("--plan", choices=tuple(PLANS), default="default")
    plan.add_argument("--method", metavar="NAME", help=f"to chi: {', '.join(methods.names(*methods.TO_CHI))}")
    plan.add_argument("--unwrap", choices=methods.names("unwrap"))
    plan.add_argument("--combination", choices=methods.names("combination"), help="of the echoes")
    plan.add_argument("--background", metavar="NAME", help=f"removal: {', '.join(methods.names('background'))}")
    plan.add_argument(
        "--two-pass", action="store_true", help="chi around sources of unreliable field from a pass without them"
    )
    plan.add_argument("--erosion", type=float, metavar="MM", help="shave the brain mask first")
    plan.add_argument(
        "--noise-limit",
        type=float,
        metavar="X",
        help="drop voxels of the mask whose field is X times as noisy as the median; 5 for chimap's own mask, "
        "a mask of yours is left alone unless this is given",
    )
    plan.add_argument(
        "--reference",
        metavar="REGION",
        help="what chi is relative to: mask (if not given), csf (of the ventricles), the name of a region, none",
    )
    plan.add_argument(
        "--regions", action="store_true", help="let a network find regions where no segmentation is given"
    )
    plan.add_argument("--swi", action="store_true", help="also susceptibility-weighted images")
    _add_settings(plan)
    _add_choice(plan)


def _add_settings(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="METHOD.PARAMETER=VALUE",
        help="change a parameter, such as tv.regularisation=1e-3; an unknown PARAMETER is answered with the known ones",
    )


def _add_choice(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--choose-regularisation",
        choices=("discrepancy", "l-curve"),
        help="from the field: where chi explains it as well as it is known, or at the corner of the L-curve",
    )


def _run(options: argparse.Namespace, command: list[str]) -> None:
    if bool(options.phase) == bool(options.dicom):
        raise InputError("give either --phase (with --magnitude) or --dicom")
    if options.dicom and options.magnitude:
        raise InputError("--magnitude goes with --phase; a DICOM folder brings its own magnitude")
    if not options.dicom and (options.series or options.write_dicom):
        raise InputError("--series and --write-dicom go with --dicom; NIfTI files do not say whose study they are")
    from chimap.commands import reconstruction

    reconstruction.run(
        phase=options.phase or [],
        magnitude=options.magnitude,
        dicom=options.dicom,
        series=options.series,
        mask=options.mask,
        segmentation=options.segmentation,
        plan=_plan(options),
        echo_times=options.echo_times,
        field_strength=options.field_strength,
        b0_direction=options.b0_dir,
        phase_range=options.phase_range,
        phase_sign=options.phase_sign,
        output=options.output,
        write_dicom=options.write_dicom,
        command=command,
    )


def _plan(options: argparse.Namespace) -> Plan:
    plan = plan_named(
        options.plan,
        inversion=options.method,
        unwrap=options.unwrap,
        combination=options.combination,
        background=options.background,
        erosion=options.erosion,
        two_pass=options.two_pass or None,
        noise_limit=options.noise_limit,
        reference=options.reference,
        regions=options.regions or None,
        swi=options.swi or None,
        choose_regularisation=options.choose_regularisation,
        settings=methods.settings_from_text(options.set),
    )
    _check_settings(options, plan.mask, plan.unwrap, plan.combination, "r2star", plan.background, plan.inversion)
    return plan


def _check_settings(options: argparse.Namespace, *used: str) -> None:
    """Refuse parameters of a method that has no part in this: a slip that would change nothing and say nothing."""
    idle = [name for name in methods.settings_from_text(options.set) if name not in used]
    if idle:
        raise InputError(f"--set {idle[0]}.…: {idle[0]} is not used here, but {', '.join(used)}")


def _bids(options: argparse.Namespace, command: list[str]) -> int:
    from chimap.commands import bids

    if options.level == "group":
        return bids.group(dataset=options.dataset, output=options.output, subjects=options.participant_label)
    if options.scheduler is not None and options.slurm:
        raise InputError("give either --scheduler or --slurm")
    return bids.participant(
        dataset=options.dataset,
        output=options.output,
        subjects=options.participant_label,
        sessions=options.session_label,
        validate=not options.skip_bids_validation,
        plan=_plan(options),
        told={
            "echo_times": options.echo_times,
            "field_strength": options.field_strength,
            "b0_direction": None if options.b0_dir is None else tuple(options.b0_dir),
            "phase_range": None if options.phase_range is None else tuple(options.phase_range),
            "phase_sign": options.phase_sign,
        },
        masks=options.masks,
        segmentations=options.segmentations,
        overwrite=options.overwrite,
        where=bids.Where(
            workers=options.workers,
            threads=options.threads,
            memory=options.memory,
            retries=options.retries,
            scheduler=options.scheduler,
            slurm=options.slurm,
            directives=tuple(options.slurm_directive),
            walltime=options.walltime,
        ),
        command=command,
    )


def _dicom(options: argparse.Namespace, command: list[str]) -> None:
    from chimap.commands import dicom

    dicom.survey(options.folder)


def _invert(options: argparse.Namespace, command: list[str]) -> None:
    _check_settings(options, options.method)
    from chimap.commands import reconstruction

    reconstruction.invert(
        local_field=options.local_field,
        mask=options.mask,
        magnitude=options.magnitude,
        csf=options.csf,
        b0_direction=options.b0_dir,
        units=options.units,
        field_strength=options.field_strength,
        echo_time=options.echo_time,
        method=options.method,
        reference=options.reference,
        settings=methods.settings_from_text(options.set),
        choose_regularisation=options.choose_regularisation,
        field_error=options.field_error,
        resume=options.resume,
        output=options.output,
        command=command,
    )


def _cosmos(options: argparse.Namespace, command: list[str]) -> None:
    from chimap.commands import orientations

    orientations.cosmos(
        local_field=options.local_field,
        mask=options.mask,
        magnitude=options.magnitude,
        transforms=options.transforms,
        registered=options.register,
        b0_direction=options.b0_dir,
        units=options.units,
        field_strength=options.field_strength,
        echo_time=options.echo_time,
        reference=options.reference,
        settings=methods.settings_from_text(options.set),
        output=options.output,
        command=command,
    )


def _evaluate(options: argparse.Namespace, command: list[str]) -> None:
    from chimap.commands import evaluation

    evaluation.evaluate(
        chi=options.chi,
        truth=options.truth,
        mask=options.mask,
        segmentation=options.segmentation,
        output=options.output,
    )


def _simulate(options: argparse.Namespace, command: list[str]) -> None:
    from chimap.commands import simulation

    simulation.simulate(
        labels=options.labels,
        subjects=options.subjects,
        seed=options.seed,
        shape=None if options.shape is None else tuple(options.shape),
        voxel_size=tuple(options.voxel_size),
        b0_direction=None if options.b0_dir is None else tuple(options.b0_dir),
        head_rotation=None if options.head_rotation is None else tuple(options.head_rotation),
        field_strength=options.field_strength,
        echo_times=tuple(options.echo_times),
        snr=options.snr,
        field_error=options.field_error,
        lesions=options.lesions,
        vendor=options.vendor,
        phase_sign=options.phase_sign,
        output=options.output,
    )


def _pack(options: argparse.Namespace, command: list[str]) -> None:
    from chimap.commands import simulation

    simulation.pack(labels=options.labels, output=options.output)


def _train(options: argparse.Namespace, command: list[str]) -> None:
    from chimap.commands import training

    training.train_network(
        recipe=options.recipe,
        data=options.data,
        validation=options.validation,
        size=options.size,
        device=options.device,
        steps=options.steps,
        seed=options.seed,
        assignments=options.set,
        minutes=options.minutes,
        start=options.start,
        resume=options.resume,
        output=options.output,
        command=command,
    )


def _demo(options: argparse.Namespace, command: list[str]) -> None:
    from chimap.commands import simulation

    simulation.demo(
        output=options.output,
        shape=tuple(options.shape),
        voxel_size=tuple(options.voxel_size),
        seed=options.seed,
        command=command,
    )


def _benchmark(options: argparse.Namespace, command: list[str]) -> None:
    from chimap.commands import benchmark

    benchmark.benchmark(
        methods=options.methods,
        cases=options.cases,
        labels=options.labels,
        shape=options.shape,
        scale=options.scale,
        device=options.device,
        output=options.output,
        command=command,
    )


def _methods(options: argparse.Namespace, command: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "name", "what it does", "source", "needs", "about", box=None, header_style="bold")
    for method in methods.METHODS:
        needs = ", ".join(method.needs)
        table.add_row(method.stage, method.name, method.summary, method.reference, needs, method.cost)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


if __name__ == "__main__":
    sys.exit(main())
