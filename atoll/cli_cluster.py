"""`atoll cluster check|render|schema`: the file that says which machines there may be, checked and turned into others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.errors import SpecError

if TYPE_CHECKING:
    from atoll.control_plane.autoscaling.spec import Scaling

DEFAULT = Path("autoscaler.toml")
File = Annotated[Path, typer.Argument(help="The file; autoscaler.toml in this folder unless given.")]

cluster_app = typer.Typer(
    help="Which machines the cluster may have: check the file, render it for `ray up` or KubeRay.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def read_scaling(file: Path) -> Scaling:
    """The file as checked. Raises `SpecError` with a line for each fault."""
    from atoll.control_plane.autoscaling.spec_toml import parse  # noqa: PLC0415 - only where a file is read

    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read {file}: {error}; `docs/autoscaling.md` says what stands in it") from None
    return parse(text, str(file))


@cluster_app.command()
def check(file: File = DEFAULT) -> None:
    """Say what is wrong with the file, line by line, or what it allows."""
    scaling = read_scaling(file)
    always = sum(kind.least * kind.price_per_hour for kind in scaling.types)
    most = sum(kind.most * kind.price_per_hour for kind in scaling.types)
    budget = "no budget" if scaling.budget_per_hour is None else f"budget {scaling.budget_per_hour:g} an hour"
    typer.echo(f"{file} is well: cluster {scaling.cluster}, provider {scaling.provider}, {budget}")
    for kind in scaling.types:
        typer.echo(
            f"  {kind.name}: {kind.least} to {kind.most} of {kind.cpus:g} CPU, {kind.gpus:g} {kind.device},"
            f" {kind.price_per_hour:g} an hour each"
        )
    typer.echo(f"  all that always stands costs {always:g} an hour, all that may stand {most:g}")


@cluster_app.command()
def render(
    file: File = DEFAULT,
    *,
    to: Annotated[str, typer.Option(help="ray-up, kuberay, or external (for Ray's own autoscaler).")],
    out: Annotated[Path | None, typer.Option(help="Write here instead of to standard output.")] = None,
) -> None:
    """Turn the file into one for `ray up`, for KubeRay, or for Ray's autoscaler with machines of your own commands."""
    text = rendered(file, to)
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")
        typer.echo(f"{out} is written")


@cluster_app.command()
def schema() -> None:
    """Print the JSON schema of the file."""
    from atoll.control_plane.autoscaling.spec_fields import schema as of_file  # noqa: PLC0415 - as above

    typer.echo(json.dumps(of_file(), indent=2))


def rendered(file: Path, to: str) -> str:
    """The text that `render` prints, with a line that says where it comes from."""
    from atoll.control_plane.autoscaling.rendering import render as render_to  # noqa: PLC0415 - as above

    plain = render_to(read_scaling(file), to, str(file))
    return (
        f"# Rendered by `atoll cluster render --to {to} {file.name}`: change that file, not this one.\n{as_yaml(plain)}"
    )


def as_yaml(plain: dict[str, Any]) -> str:
    """In the order in which it was made, without aliases: people read it."""
    import yaml  # noqa: PLC0415 - as above

    class Plain(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML comes without types
        def ignore_aliases(self, _: object) -> bool:
            return True

    return str(yaml.dump(plain, Dumper=Plain, sort_keys=False, default_flow_style=False, width=200, allow_unicode=True))
