"""`vigil train` and `vigil export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.console import Console

from vigil.errors import VigilError

LEROBOT = "Of a LeRobot policy"


def train(
    demonstrations: Annotated[
        Path, typer.Argument(help="folder of recordings (vigil collect), or a LeRobotDataset v3.0")
    ],
    out: Annotated[Path, typer.Option(help="the run's folder; a run found there is resumed")] = Path(
        "out/train"
    ),
    rig: Annotated[str, typer.Option(help="rig whose cameras and joints the policy uses")] = "franka_sim",
    config: Annotated[Path | None, typer.Option(help="YAML file with training settings")] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help="checkpoint or bundle whose weights are gone on from (see freeze_encoder)"
        ),
    ] = None,
    rollouts: Annotated[
        int,
        typer.Option(min=0, help="choose among the kept checkpoints by so many episodes each, in lock step"),
    ] = 0,
    rollout_seed: Annotated[int, typer.Option(help="seed of the first of their scenes")] = 60_000,
    bundle: Annotated[
        Path | None, typer.Option(help="put the sampler into this bundle when training ends")
    ] = None,
    name: Annotated[str | None, typer.Option(help="of the sampler in the bundle")] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="file for the rows made of the demonstrations, which runs may share; default in --out"
        ),
    ] = None,
) -> None:
    """Train a policy on demonstrations; Ctrl-C saves, the same command resumes."""
    from vigil.rig import load_rig
    from vigil.train.choice import choose_checkpoint
    from vigil.train.config import load_config
    from vigil.train.demonstrations import load_demonstrations
    from vigil.train.export import SamplerRequest, export_bundle
    from vigil.train.trainer import Trainer, inherit
    from vigil.train.weights import load_policy

    settings = load_config(config)
    trained = load_policy(source) if source else None
    if trained is not None:
        settings = inherit(settings, trained.net.config)
    elif settings.freeze_encoder:
        raise VigilError("freeze_encoder needs an encoder: name a checkpoint or a bundle with --from")
    robot = load_rig(rig)
    data = load_demonstrations(demonstrations, robot, settings, cache or out / "dataset.npz")
    trainer = Trainer(settings, data, out, trained)
    trainer.run()
    console = Console()
    if trainer.step < settings.steps:
        Console(stderr=True).print(
            f"stopped at step {trainer.step}: the same command resumes", style="yellow"
        )
        raise typer.Exit(130)
    checkpoint = trainer.checkpoint_path
    if rollouts:
        checkpoint = choose_checkpoint(trainer.kept(), robot, rollouts, rollout_seed, out, console)
    if bundle:
        made = export_bundle(checkpoint, bundle, SamplerRequest(name=name))
        _tell(console, bundle, made)


def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="checkpoint.pt of a training run, a bundle's folder, or that of a LeRobot policy"
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="the bundle's folder; if left out, the bundle that was named")
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="ddim, dpm_solver (diffusion); euler, midpoint (flow); mean_flow; streaming; ddpm (LeRobot). "
            "Default: by objective"
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="evaluations of the denoiser per call; the sampler's by default")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="of the sampler in the bundle, the method's by default; LeRobot: of the bundle"),
    ] = None,
    inpaint: Annotated[
        bool, typer.Option("--inpaint", help="the graph takes known targets, as real-time chunking needs")
    ] = False,
    denoiser: Annotated[
        str | None, typer.Option(help="of a bundle with several: the sampler whose denoiser is taken")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="of the sampler's graph: fp32, fp16 or int8, the latter two with --tolerance")
    ] = "fp32",
    tolerance: Annotated[
        float | None,
        typer.Option(help="largest difference to torch, in normalised units, above which nothing is written"),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="begin the bundle anew")] = False,
    rig: Annotated[
        str, typer.Option(help="rig that the policy drives", rich_help_panel=LEROBOT)
    ] = "franka_sim",
    fps: Annotated[
        float | None, typer.Option(help="the data set's rate [Hz]", rich_help_panel=LEROBOT)
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(help="the data set, whose meta names the columns and the rate", rich_help_panel=LEROBOT),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(help="the rig's column of each number of an action: a,b,...", rich_help_panel=LEROBOT),
    ] = None,
    state_columns: Annotated[
        str | None,
        typer.Option(help="the same of the state; the action's by default", rich_help_panel=LEROBOT),
    ] = None,
    camera: Annotated[
        list[str] | None,
        typer.Option(
            help="CAMERA=KEY, e.g. wrist=observation.images.laptop; may be repeated", rich_help_panel=LEROBOT
        ),
    ] = None,
    degrees: Annotated[
        bool, typer.Option("--degrees", help="joints are in degrees", rich_help_panel=LEROBOT)
    ] = False,
    scale: Annotated[
        list[str] | None,
        typer.Option(
            help="COLUMN=SCALE[,ZERO], rad or m per unit, and at zero: gripper=0.0008; may be repeated",
            rich_help_panel=LEROBOT,
        ),
    ] = None,
) -> None:
    """Put a sampler into a policy bundle (ONNX), with its parity to torch checked; other samplers stay as they are.

    A LeRobot policy, diffusion or ACT, becomes a bundle of its own.
    """
    from vigil.train.lerobot.checkpoint import is_checkpoint

    theirs = is_checkpoint(checkpoint)
    if out is None and (theirs or not checkpoint.is_dir()):
        raise VigilError("--out is missing: name the folder of the bundle")
    folder = out or checkpoint
    if theirs:
        from vigil.rig import load_rig
        from vigil.train.lerobot.binding import parse_wishes
        from vigil.train.lerobot.export import export_lerobot

        if inpaint or denoiser or precision != "fp32" or tolerance is not None:
            raise VigilError(
                "--inpaint, --denoiser, --precision and --tolerance are for policies trained here: leave them out"
            )
        wishes = parse_wishes(
            fps, dataset, columns, state_columns, camera or [], degrees, scale or [], sampler, steps, name
        )
        bundle = export_lerobot(checkpoint, folder, load_rig(rig), wishes)
    else:
        from vigil.policy.spec import Precision
        from vigil.train.export import SamplerRequest, export_bundle

        if precision not in get_args(Precision):
            raise VigilError(f"--precision is {precision!r}: give one of {', '.join(get_args(Precision))}")
        wanted = SamplerRequest(sampler, name, steps, inpaint, denoiser, precision, tolerance)  # type: ignore[arg-type]
        bundle = export_bundle(checkpoint, folder, wanted, replace=replace)
    _tell(Console(), folder, bundle)


def _tell(console: Console, folder: Path, bundle) -> None:
    parity = bundle.spec.parity
    console.print(
        f"[green]{folder}[/green]: sampler {bundle.sampler_name} ({bundle.sampler.method}, {bundle.sampler.steps} steps), "
        f"identity {bundle.content_hash[:12]}, largest difference to torch {max(parity.encoder, parity.chunks):.1e}"
    )
