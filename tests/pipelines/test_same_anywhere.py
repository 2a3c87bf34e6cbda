"""Scores and drawn tiles do not depend on the number of workers, the order or the batch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from conftest import SETTINGS
from distributed import Client, LocalCluster
from interruptions import results

from pipelines._cluster import connect
from pipelines._runs import Execution
from pipelines.score import score

SHARING = SETTINGS.with_values(["sampling.tiles=5", "sampling.draws=3", "scoring.precision=bfloat16"])


@pytest.fixture(scope="module")
def sharing_model(tmp_path_factory):
    """A transformer whose features in half precision depend on how many tiles are computed together."""
    import torch

    from wsi_ats.models.checkpoints import save_model
    from wsi_ats.models.kinds import model_for
    from wsi_ats.tasks.targets import Target

    folder = tmp_path_factory.mktemp("sharing")
    target = Target("classification", ("negative", "positive"))
    torch.manual_seed(0)
    model = model_for(SHARING, target)
    for name, weight in model.named_parameters():
        if name.endswith("logit.weight"):  # else attention is uniform
            torch.nn.init.normal_(weight)
    save_model(folder, model, SHARING, target)
    return folder


@contextmanager
def threads(number: int) -> Iterator[Client]:
    """A worker in this process with a number of threads."""
    import torch

    before = torch.get_num_threads()
    cluster = LocalCluster(n_workers=1, threads_per_worker=number, processes=False, dashboard_address=":0")
    try:
        with cluster, Client(cluster, set_as_default=False) as client:
            yield client
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def expected(refs, sharing_model, tmp_path_factory):
    """One worker, one slide at a time, in order."""
    out = tmp_path_factory.mktemp("expected") / "scores"
    with threads(1) as client:
        assert score(refs, sharing_model, out, execution=Execution(scheduler=client)).exit_code == 0
    return results(out)


def test_two_workers_with_two_slides_each_in_another_order(refs, sharing_model, expected, tmp_path):
    mixed = random.Random(1).sample(refs, len(refs))
    score(mixed, sharing_model, tmp_path / "scores", execution=Execution(workers=2, slides_at_once=2))
    assert results(tmp_path / "scores") == expected


def test_threads_of_one_process_and_a_few_slides_at_a_time(refs, sharing_model, expected, tmp_path):
    with threads(3) as client:
        for few in (refs[3:], refs):
            score(few, sharing_model, tmp_path / "scores", execution=Execution(scheduler=client))
    assert results(tmp_path / "scores") == expected


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "at_once"), [(1, 4), (4, 1)])
def test_results_do_not_depend_on_the_number_of_workers(
    refs, sharing_model, expected, tmp_path, workers, at_once
):
    execution = Execution(workers=workers, slides_at_once=at_once)
    with connect("local", workers=workers, at_once=at_once) as client:
        score(refs, sharing_model, tmp_path / "scores", execution=Execution(scheduler=client))
    assert results(tmp_path / "scores") == expected
    score(refs[:1], sharing_model, tmp_path / "one", execution=execution)  # one worker, with all cores
    assert results(tmp_path / "one")["predictions"] == expected["predictions"][:2]  # the header and one row
