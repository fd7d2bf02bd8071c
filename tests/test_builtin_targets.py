import os
import pickle

import pytest
import safetensors.torch
import torch
from torch.nn import functional as F

from ddbench.builtin.networks import resnet20
from ddbench.contract.examples import DatasetInfo
from ddbench.contract.spec import RunSpec
from ddbench.errors import MissingPrerequisite, UsageError
from ddbench.pipeline.plan import plan_run
from ddbench.pipeline.prepare import prepare

INFO = DatasetInfo("x", ("a", "b", "c"), (3, 32, 32), (0.5, 0.4, 0.3), (0.2, 0.3, 0.1), "image", "", False)


def prepare_target(catalog, target, **fields: object):
    return prepare(plan_run(RunSpec.parse({"method": "random_subset", "target": target, **fields}), catalog), catalog)


def resnet_from(catalog, weights, dataset: str = "digits", **options: object):
    target = {"name": "pretrained", "options": {"network": "resnet20", "weights": str(weights), **options}}
    return prepare_target(catalog, target, dataset=dataset)


def test_all_but_the_last_layer_is_loaded(catalog, tmp_path):
    torch.manual_seed(0)
    trained = resnet20(INFO)
    trained.bn1.running_mean.fill_(0.25)
    state = {f"module.{name}": tensor for name, tensor in trained.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pth")
    prepared = resnet_from(catalog, tmp_path / "w.pth")
    loaded = prepared.setting.module.network.state_dict()
    for name, tensor in trained.state_dict().items():
        if name.startswith("linear"):
            continue
        assert torch.equal(loaded[name], tensor), name
    assert not loaded["linear.weight"].any()
    assert (loaded["linear.bias"] == 1).all()
    drawn = prepared.setting.networks("evaluation", torch.Generator()).sample(5).params
    assert {tensor.shape[0] for tensor in drawn.values()} == {1}
    assert torch.equal(drawn["network.conv1.weight"][0], trained.conv1.weight)

    safetensors.torch.save_file(trained.state_dict(), tmp_path / "w.safetensors")
    again = resnet_from(catalog, tmp_path / "w.safetensors").setting.module.network.state_dict()
    assert all(torch.equal(again[name], loaded[name]) for name in loaded)


def test_images_get_the_normalisation_of_the_pretrained_network(catalog, tmp_path):
    torch.save(resnet20(INFO).state_dict(), tmp_path / "w.pth")
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    prepared = resnet_from(catalog, tmp_path / "w.pth", mean=mean, std=std)
    info, module = prepared.train.info, prepared.setting.module.eval()
    seen = []
    module.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pixels = torch.rand(2, *info.sample_shape)
    module((pixels - torch.tensor(info.mean).view(-1, 1, 1)) / torch.tensor(info.std).view(-1, 1, 1))
    torch.testing.assert_close(seen[0], (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1))
    assert info.sample_shape == (3, 32, 32)


class _Runs:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_with_code_in_it_is_refused_and_runs_nothing(catalog, tmp_path):
    for name, write in (("a.pth", torch.save), ("b.pkl", lambda thing, path: path.write_bytes(pickle.dumps(thing)))):
        write({"state_dict": _Runs(tmp_path / "was_run")}, tmp_path / name)
        with pytest.raises(UsageError, match="could run code") as error:
            resnet_from(catalog, tmp_path / name)
        assert "safetensors" in error.value.hint
    assert not (tmp_path / "was_run").exists()


def test_weights_that_do_not_fit(catalog, tmp_path):
    state = resnet20(INFO).state_dict()
    torch.save(state, tmp_path / "whole.pth")
    raw = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "truncated.pth").write_bytes(raw[: len(raw) // 2])
    safetensors.torch.save_file(state, tmp_path / "whole.safetensors")
    (tmp_path / "truncated.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-1000])
    (tmp_path / "text.pth").write_text("not weights")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({name: t for name, t in state.items() if name != "bn1.weight"}, tmp_path / "lacks.pth")
    torch.save({**state, "extra.weight": torch.zeros(2)}, tmp_path / "more.pth")
    torch.save({**state, "conv1.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "wide.pth")
    for name, message in {
        "none.pth": "there is no file",
        "truncated.pth": "damaged or not a file of tensors",
        "truncated.safetensors": "damaged or not a weights file",
        "text.pth": "does not hold tensors only",
        "list.pth": "does not hold a state dict",
        "lacks.pth": "belongs to another network: it lacks bn1.weight",
        "more.pth": "belongs to another network: it has the unknown extra.weight",
        "wide.pth": "belongs to another network: it has another shape of conv1.weight",
    }.items():
        with pytest.raises(UsageError, match=message):
            resnet_from(catalog, tmp_path / name)


def test_weights_that_cannot_be_downloaded(catalog):
    with pytest.raises(MissingPrerequisite, match="resnet20 has no weights to download") as error:
        resnet_from(catalog, "")
    assert "--weights" in error.value.hint


def test_a_target_goes_with_any_dataset_but_brings_its_network(catalog):
    plan = plan_run(RunSpec.parse({"method": "random_subset", "target": "timm/resnet18", "dataset": "digits"}), catalog)
    assert plan.settings.sample_shape == (3, 224, 224)
    assert (plan.settings.network.name, plan.init.name) == ("timm/resnet18", "timm/resnet18")
    for clash in ({"network": "mlp"}, {"init": "fixed"}):
        with pytest.raises(UsageError, match="brings its own"):
            plan_run(RunSpec.parse({"method": "random_subset", "target": "timm/resnet18", **clash}), catalog)
    with pytest.raises(UsageError, match="brings its own dataset"):
        plan_run(RunSpec.parse({"method": "random_subset", "target": "usps_to_mnist", "dataset": "svhn"}), catalog)


@pytest.mark.slow
def test_networks_of_one_dataset_on_another(catalog, real_data):
    """Networks come from pools of the source, images are converted, and `fixed` is one network on both sides."""
    quick = {"count": 2, "held_out": 2, "steps": 30}
    prepared = prepare_target(catalog, {"name": "mnist_to_usps", "options": quick})
    assert (prepared.record.name, prepared.record.sample_shape) == ("usps", (1, 28, 28))
    train = prepared.task(torch.Generator()).networks.sample(2).params["conv1.weight"]
    scored = prepared.setting.networks("evaluation", torch.Generator()).sample(2).params["conv1.weight"]
    assert not any(torch.equal(a, b) for a in train for b in scored)
    [used] = prepared.provenance().values()
    assert used["dataset"] == "mnist"

    colour = prepare_target(catalog, {"name": "svhn_to_mnist", "options": {"fixed": True, "steps": 30}})
    assert colour.record.sample_shape == (3, 28, 28)
    single = colour.task(torch.Generator()).networks.sample(4).params["conv1.weight"]
    assert single.shape == (1, 6, 3, 5, 5)
    assert torch.equal(
        single, colour.setting.networks("evaluation", torch.Generator()).sample(9).params["conv1.weight"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["resnet20", "squeezenet"])
def test_real_weights_classify_what_they_were_trained_for(catalog, real_data, architecture):
    """The features under the replaced layer, with the file's own last layer put back, classify real test images."""
    if architecture == "resnet20":
        weights = real_data / "weights" / "resnet20_cifar10-12fca82f.th"
        prepared = resnet_from(catalog, weights, "cifar10")
        test = prepared.setting.test[torch.arange(500)]
        state = torch.load(weights, weights_only=True, map_location="cpu")["state_dict"]
        layer, names, classes = (
            prepared.setting.module.network.linear,
            ("module.linear.weight", "module.linear.bias"),
            None,
        )
    else:
        weights = real_data / "weights" / "squeezenet1_0_imagenet_fp16.pth"
        target = {"name": "torchvision/squeezenet1_0", "options": {"weights": str(weights), "size": 224}}
        prepared = prepare_target(catalog, target, dataset=f"folder:{real_data / 'imagenette'}", images_per_class=1)
        test = prepared.setting.test[torch.arange(0, 500, 5)]
        state = torch.load(weights, weights_only=True)
        layer, names = prepared.setting.module.network.classifier[1], ("classifier.1.weight", "classifier.1.bias")
        classes = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
    with torch.no_grad():
        for parameter, name in zip((layer.weight, layer.bias), names, strict=True):
            parameter.copy_(state[name][classes] if classes else state[name])
        module = prepared.setting.module.eval()
        predicted = torch.cat([module(part).argmax(1) for part in test.inputs.split(50)])
    assert float((predicted == test.labels).float().mean()) > 0.88
    assert F.one_hot(predicted, 10).sum(0).min() > 0
