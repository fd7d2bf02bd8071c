import torch

from ddbench.contract.run import Run
from ddbench.contract.spec import RunSpec
from ddbench.discovery.catalog import Catalog
from ddbench.pipeline.plan import plan_run
from ddbench.pipeline.prepare import prepare


def test_draws_what_was_asked_for(tmp_path):
    catalog = Catalog()
    plan = plan_run(RunSpec.parse({"method": "random_subset", "images_per_class": 3, "steps": 3}), catalog)
    prepared = prepare(plan, catalog)

    def draw(seed: int, **options: object):
        run = Run(tmp_path, seed=seed)
        task = prepared.task(run.generator)
        distilled = plan.method.call(plan.method.validated(options), task, run)
        distilled.validate(task)
        return distilled

    first = draw(0)
    assert first.labels.tolist() == [list(range(10))] * 3
    assert torch.equal(first.inputs, draw(0).inputs)
    assert not torch.equal(first.inputs, draw(1).inputs)
    assert draw(0, balanced=False).count == 30
    assert plan.method.facts["companion"]
