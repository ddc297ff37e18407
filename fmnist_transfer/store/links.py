"""Links to pages of MLflow's UI, relative (`#/experiments/2`), so that they work on every server."""

from urllib.parse import quote

from fmnist_transfer.store.roles import Role

TRAINING_PAGES = "workflowType=machine_learning"  # the UI's other workflow type is for language models
INLINE_DPI = 60  # the UI shows pictures in descriptions at their natural size


def experiment_page(experiment_id: str, view: str = "") -> str:
    """The experiment's runs, in one of its saved views."""
    share = f"viewStateShareKey={view}&" if view else ""
    return f"#/experiments/{experiment_id}/runs?{share}{TRAINING_PAGES}"


def run_page(experiment_id: str, run_id: str, artifact: str = "") -> str:
    return f"#/experiments/{experiment_id}/runs/{run_id}" + (f"/artifacts/{artifact}" if artifact else "")


def curves_page(experiment_id: str, sweep_run_id: str) -> str:
    """The sweep's curve runs compared, as in the original report: one chart per metric, one line per run."""
    condition = quote(f"tags.role = '{Role.CURVE}' and tags.parent = '{sweep_run_id}'")
    # The UI lists child runs without their parent only if they are not sorted by date.
    order = f"orderByKey={quote('params.`init`')}&orderByAsc=true"
    shown = f"searchFilter={condition}&{order}&startTime=ALL&compareRunsMode=CHART"
    return f"#/experiments/{experiment_id}/runs?{TRAINING_PAGES}&{shown}"


def model_page(name: str, version: str | int = "") -> str:
    return f"#/models/{quote(name)}" + (f"/versions/{version}" if version else "")


def picture(run_id: str, artifact: str, caption: str) -> str:
    """Markdown that shows an image artifact of the run."""
    return f"![{caption}](get-artifact?path={quote(artifact)}&run_uuid={run_id})"
