"""`vigil train` and `vigil export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def train(
    demonstrations: Annotated[
        Path, typer.Argument(help="folder of recordings (vigil collect), or a LeRobotDataset v3.0")
    ],
    out: Annotated[Path, typer.Option(help="the run's folder; a run found there is resumed")] = Path(
        "out/train"
    ),
    rig: Annotated[str, typer.Option(help="rig whose cameras and joints the policy uses")] = "franka_sim",
    config: Annotated[Path | None, typer.Option(help="YAML file with training settings")] = None,
    bundle: Annotated[Path | None, typer.Option(help="export a bundle there when training ends")] = None,
) -> None:
    """Train a policy on demonstrations; Ctrl-C saves, the same command resumes."""
    from vigil.rig import load_rig
    from vigil.train.config import load_config
    from vigil.train.demonstrations import load_demonstrations
    from vigil.train.trainer import Trainer

    settings = load_config(config)
    data = load_demonstrations(demonstrations, load_rig(rig), settings, out / "dataset.npz")
    trainer = Trainer(settings, data, out)
    trainer.run()
    if trainer.step < settings.steps:
        Console(stderr=True).print(
            f"stopped at step {trainer.step}: the same command resumes", style="yellow"
        )
        raise typer.Exit(130)
    if bundle:
        export(trainer.checkpoint_path, bundle)


def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="checkpoint.pt of a training run, or the folder of a LeRobot policy")
    ],
    out: Annotated[Path, typer.Option(help="folder of the bundle")],
    steps: Annotated[int | None, typer.Option(help="DDIM steps; the configuration's by default")] = None,
    sampler: Annotated[str | None, typer.Option(help="LeRobot diffusion: ddim (default) or ddpm")] = None,
    name: Annotated[str | None, typer.Option(help="LeRobot: name of the bundle")] = None,
    rig: Annotated[str, typer.Option(help="LeRobot: rig that the policy drives")] = "franka_sim",
    fps: Annotated[float | None, typer.Option(help="LeRobot: the data set's rate [Hz]")] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="LeRobot: the data set, whose meta names the columns and the rate")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="LeRobot: the rig's column of each number of an action: a,b,...")
    ] = None,
    state_columns: Annotated[
        str | None, typer.Option(help="LeRobot: the same of the state; the action's by default")
    ] = None,
    camera: Annotated[
        list[str] | None,
        typer.Option(help="LeRobot: CAMERA=KEY, e.g. wrist=observation.images.laptop; may be repeated"),
    ] = None,
    degrees: Annotated[bool, typer.Option("--degrees", help="LeRobot: joints are in degrees")] = False,
    scale: Annotated[
        list[str] | None,
        typer.Option(
            help="LeRobot: COLUMN=SCALE[,ZERO], rad or m per unit, and at zero: gripper=0.0008; may be repeated"
        ),
    ] = None,
) -> None:
    """Export a checkpoint, ours or LeRobot's, as a policy bundle (ONNX), with its parity to torch checked."""
    from vigil.train.lerobot.checkpoint import is_checkpoint

    if is_checkpoint(checkpoint):
        from vigil.rig import load_rig
        from vigil.train.lerobot.binding import parse_wishes
        from vigil.train.lerobot.export import export_lerobot

        wishes = parse_wishes(
            fps, dataset, columns, state_columns, camera or [], degrees, scale or [], sampler, steps, name
        )
        bundle = export_lerobot(checkpoint, out, load_rig(rig), wishes)
    else:
        from vigil.train.export import export_bundle

        bundle = export_bundle(checkpoint, out, steps)
    parity = bundle.spec.parity
    Console().print(
        f"[green]{out}[/green]: bundle {bundle.content_hash[:12]}, "
        f"largest difference to torch {max(parity.encoder, parity.chunks):.1e}"
    )
