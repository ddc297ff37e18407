"""Addresses of MLflow's UI, relative to the server's (`#/experiments/2`): they work wherever the store is shown."""

from urllib.parse import quote

from fmnist_transfer.store.roles import Role

TRAINING_PAGES = "workflowType=machine_learning"  # the others are of language models
INLINE_DPI = 60  # the UI shows a description's pictures at their own size


def experiment_page(experiment_id: str, view: str = "") -> str:
    """The experiment's runs, by one of its saved views."""
    share = f"viewStateShareKey={view}&" if view else ""
    return f"#/experiments/{experiment_id}/runs?{share}{TRAINING_PAGES}"


def run_page(experiment_id: str, run_id: str, artifact: str = "") -> str:
    """The run, or one of its artifacts, which the UI shows inline."""
    return f"#/experiments/{experiment_id}/runs/{run_id}" + (f"/artifacts/{artifact}" if artifact else "")


def curves_page(experiment_id: str, sweep_run_id: str) -> str:
    """The sweep's curve runs, one line each in a chart for each metric: the original report's graphs."""
    condition = quote(f"tags.role = '{Role.CURVE}' and tags.parent = '{sweep_run_id}'")
    # Sorted by anything but the date, child runs are listed without their parent.
    order = f"orderByKey={quote('params.`init`')}&orderByAsc=true"
    shown = f"searchFilter={condition}&{order}&startTime=ALL&compareRunsMode=CHART"
    return f"#/experiments/{experiment_id}/runs?{TRAINING_PAGES}&{shown}"


def model_page(name: str, version: str | int = "") -> str:
    """The registered model, or one of its versions."""
    return f"#/models/{quote(name)}" + (f"/versions/{version}" if version else "")


def picture(run_id: str, artifact: str, caption: str) -> str:
    """Markdown that shows an image among a run's artifacts."""
    return f"![{caption}](get-artifact?path={quote(artifact)}&run_uuid={run_id})"
