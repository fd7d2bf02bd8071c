"""The suites that ship: every task of each can be planned for every method that it names."""

import pytest

from ddbench.discovery.catalog import Catalog
from ddbench.pipeline.plan import reason_to_skip
from ddbench.pipeline.suite import plan_suite

NAMES = ("field", "small", "smoke", "wang2018")


@pytest.mark.parametrize("name", NAMES)
def test_every_run_can_be_planned(name: str, catalog: Catalog):
    suite = catalog.suite(name)
    jobs = plan_suite(suite, (), catalog, {}, {})
    assert len(jobs) == len(suite.methods) * sum(len(task.seeds) for task in suite.tasks)
    assert suite.reference in {c.name for c in catalog.components("method") if c.facts.get("companion")}
    # A suite of runs that are all skipped, or twice the same, would say nothing.
    assert sum(not reason_to_skip(job.plan) for job in jobs.values()) > len(jobs) / 2
    assert len({job.plan.settings.fingerprint for job in jobs.values()}) == len(jobs)


def test_the_paper_is_carried_out_with_its_own_options(catalog: Catalog):
    jobs = plan_suite(catalog.suite("wang2018"), (), catalog, {}, {})
    own = next(job for place, job in jobs.items() if (place.method, place.task) == ("unrolled_gd", "mnist-random-10x3"))
    assert own.plan.settings.experiment == "wang2018/mnist-random-10x3"
    assert own.plan.settings.eval_networks == 200
    other = next(job for place, job in jobs.items() if (place.method, place.task) == ("k_means", "mnist-random-10x3"))
    assert (other.plan.settings.experiment, other.plan.settings.eval_networks) == ("", 200)
