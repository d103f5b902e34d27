"""What would be sent to the target for a launch: a plan with stand-ins for what only an agent knows. No connection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launch.checking import parse
from launch.models import CodeSource, GitSource, ImageSource, LaunchSpec
from launch.plugins import Attempt, Runner, TargetContext, runner_class
from launch.references import parse_reference
from launch.resolve import BUILDER, macro_values, render_macros
from launch.secrets import render
from launch.tracking import tracking_env

STAND_IN_KEY = "0" * 40
STAND_IN_SERVER = "http://tracking-server"


def preview(spec: LaunchSpec, *, installation: str, home: Path) -> dict[str, Any]:
    """Return the request of a launch's first attempt for people: secrets masked, JSON types only.

    The image of a job that is built first, the tracking server's address and its key are stand-ins.

    Args:
        spec: the launch.
        installation: eight hex digits, part of the attempt's name.
        home: the launch home.

    Raises:
        ConfigError: the options or the image do not fit the launch.
    """
    runner = runner_class(spec.resource)(TargetContext(installation, home))
    image = _image(spec, runner, home)
    config = {key: value for key, value in spec.resource_config.items() if key != BUILDER}
    macros = macro_values(spec, image)
    # A secret's stand-in is its reference.
    filled, _ = render(config, "${{secret:{}}}".format, rest=lambda text: str(render_macros(text, macros)))
    options = parse(runner.Options, filled, where="resource config")
    attempt = Attempt(
        installation=installation,
        run_id=spec.run_id,
        number=1,
        command=spec.command,
        env=tracking_env(spec, 1, base_url=STAND_IN_SERVER, wandb_dir=None),
        secret_env={"WANDB_API_KEY": STAND_IN_KEY},
        code=Path("code.tar.gz") if isinstance(spec.job.source, CodeSource | GitSource) else None,
    )
    return runner.plan(attempt, image, options).view()


def _image(spec: LaunchSpec, runner: Runner, home: Path) -> str:
    if isinstance(spec.job.source, ImageSource):
        source = spec.job.source
        return parse_reference(source.image).at(source.digest) if source.digest else source.image
    made = spec.job.requirements[:12] if spec.job.requirements else "no-requirements"
    return str(home / "environments" / made) if runner.builder == "venv" else f"environment:{made}"
