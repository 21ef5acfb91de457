"""`turnout runs push`: publishes a run's model or adapter, with a model card."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.contracts.errors import ConfigurationError, NotFoundError
from turnout.cli.options import Id, Json, Url, examples

if TYPE_CHECKING:
    from services.contracts.records import Checkpoint
    from turnout.cli.hub import Hub
    from turnout.cli.package import Contents
    from turnout.cli.run_data import RunData

app = typer.Typer(rich_markup_mode=None)


@app.command(
    epilog=examples(
        "turnout runs push demo-3f ada/arithmetic",
        "turnout runs push demo-3f --to-folder arithmetic",
        "turnout runs push demo-3f ada/arithmetic --wait --merged --public",
    )
)
def push(
    run_id: Id,
    repository: Annotated[str | None, typer.Argument(metavar="OWNER/NAME", help="Repository of the hub.")] = None,
    to_folder: Annotated[Path | None, typer.Option(help="Write this folder instead, without any network.")] = None,
    checkpoint: Annotated[
        int | None, typer.Option(min=0, help="Step of the checkpoint; by default the newest.")
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="With LoRA: the whole model instead of the adapter.")
    ] = False,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the content of a repository.")] = False,
    base_model: Annotated[
        str | None, typer.Option(help="Hub name of the base model, if the run has it from a folder.")
    ] = None,
    license_name: Annotated[
        str | None, typer.Option("--license", help="Licence of the base model, such as apache-2.0.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end of the run first.")] = False,
    as_json: Json = False,
    api_url: Url = None,
) -> None:
    """Publish a run's model or adapter with a model card, on the Hugging Face hub or as a folder."""
    from turnout.cli import output
    from turnout.cli.hub import Hub
    from turnout.cli.package import write_folder
    from turnout.cli.run_data import collect
    from turnout.cli.views.card import RUN
    from turnout.client.run_ids import client_of

    if (repository is None) == (to_folder is None):
        raise ConfigurationError(
            "Give either a repository (owner/name) or --to-folder.", remedy="Say where to publish.", field="REPOSITORY"
        )
    hub = Hub(repository) if repository is not None else None  # before waiting for hours
    with client_of(api_url, run_id) as (client, found):
        if wait:
            for _ in client.follow(found):
                pass
        data = collect(client, found)
    chosen = choose(data, checkpoint)
    with tempfile.TemporaryDirectory() as scratch:
        contents = package(data, chosen, base_model, license_name, hub, Path(scratch) if merged else None)
        if hub is not None:
            message = f"Step {chosen.step} of {data.run.name} ({data.run.id})"
            place = hub.push(contents, (RUN, data.run.id), public=public, force=force, message=message)
        elif to_folder is not None:
            write_folder(contents, to_folder)
            place = str(to_folder)
    result = {"run_id": data.run.id, "step": chosen.step, "place": place, "files": sorted(contents)}
    output.show(result, as_json, f"Published step {chosen.step} of {data.run.name} in {place}.")


def choose(data: RunData, step: int | None) -> Checkpoint:
    """The run's checkpoint of a step, or its newest.

    Raises:
        NotFoundError: there is none, or it is not on this machine.
    """
    there = [item for item in data.checkpoints if item.exists and step in (None, item.step)]
    if not there:
        steps = ", ".join(str(item.step) for item in data.checkpoints if item.exists) or "none"
        wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise NotFoundError(f"{data.run.id} has {wanted} on disk; it has: {steps}.", remedy="Choose another.")
    chosen = max(there, key=lambda item: item.step)
    if not (Path(chosen.path) / "hf").is_dir():
        raise NotFoundError(
            f"The checkpoint {chosen.path} is not on this machine.",
            remedy="Run `turnout runs push` where the learner's home is, with --api-url.",
        )
    return chosen


def package(
    data: RunData,
    chosen: Checkpoint,
    base_model: str | None,
    license_name: str | None,
    hub: Hub | None,
    merge_in: Path | None,
) -> Contents:
    """Everything that is published. `merge_in`: an empty folder for a merged model; None: as the run has it."""
    import msgspec

    from turnout.cli.package import adapter_for, files_of, holds_adapter, license_of, terms_of
    from turnout.cli.package import merged as merged_contents
    from turnout.cli.views.card import SHOWN, Published, model_card
    from turnout.cli.views.plots import report_plots

    folder, model = Path(chosen.path) / "hf", data.run.config["model"]
    is_adapter = holds_adapter(folder)
    name = base_model or model["path"]
    if merge_in is not None and not is_adapter:
        raise ConfigurationError(
            "--merged is for runs with model.lora; this one has the whole model.",
            remedy="Leave it out.",
            field="--merged",
        )
    contents: Contents
    if merge_in is not None:
        contents = merged_contents(folder, model["path"], model["dtype"], merge_in)
    else:
        contents = adapter_for(folder, name) if is_adapter else files_of(folder)
    base = Path(model["path"])
    found = license_name or (license_of(base / "README.md") if base.is_dir() else "")
    if base.is_dir():
        contents |= terms_of(base)
    elif not found and hub is not None:
        found = hub.license_of(name)
    plots = [plot for plot in report_plots(data) if plot.name in SHOWN]
    published = Published(chosen.step, is_adapter and merge_in is None, name, found)
    contents |= {f"turnout/{plot.name}.png": plot.png for plot in plots}
    contents["turnout/configuration.json"] = msgspec.json.format(msgspec.json.encode(data.run.config))
    contents["README.md"] = model_card(data, published, plots).encode()
    return contents
