import dataclasses
import itertools
import multiprocessing
import traceback

import numpy as np
import pytest
import torch

from sam4ir.data.loader import Mixup, SampleStream, eval_samples, train_batches
from sam4ir.data.sample import Sample, collate
from sam4ir.utils.image import ImageError


class Numbers:
    """Ten images; a sample tells its index, and the first numbers of its stream."""

    def __init__(self, broken=None):
        self.broken = broken

    def __len__(self):
        return 10

    def key(self, index):
        return f"image{index}"

    def get(self, index, rng):
        if index == self.broken:
            raise ImageError(f"folder/image{index}.png: truncated PNG")
        drawn = torch.from_numpy(rng.random((3, 2, 2), dtype=np.float32))
        regions = torch.arange(4).view(2, 2) * (index % 3)
        return Sample(self.key(index), drawn, drawn + index, {"regions": regions, "spe": regions[None].float()})


def stream(**arguments):
    options = {"seed": 1, "batch_size": 4, "total_samples": 48} | arguments
    return list(train_batches(Numbers(), **options))


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one.keys, one.numbers, one.region_count) == (other.keys, other.numbers, other.region_count)
        for field in ("lq", "gt", "regions", "spe"):
            assert torch.equal(getattr(one, field), getattr(other, field))


def test_stream_does_not_depend_on_workers():
    assert_same(stream(), stream(num_workers=2))


def test_stream_goes_on_where_it_stopped():
    assert_same(stream()[5:], stream(start_sample=20))


def test_ranks_share_the_batches_of_one():
    ranks = [stream(rank=r, world_size=2) for r in range(2)]
    for whole, *parts in zip(stream(), *ranks, strict=True):
        assert whole.numbers == parts[0].numbers + parts[1].numbers
        assert whole.keys == parts[0].keys + parts[1].keys
        assert torch.equal(whole.lq, torch.cat([p.lq for p in parts]))


def test_batch_size_does_not_change_the_samples():
    assert torch.equal(torch.cat([b.lq for b in stream()]), torch.cat([b.lq for b in stream(batch_size=12)]))


def test_every_epoch_takes_every_image_once_in_its_own_order():
    keys = list(itertools.chain(*(b.keys for b in stream(batch_size=10, total_samples=30))))
    epochs = [keys[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(e) == [f"image{i}" for i in range(10)] for e in epochs)
    assert len({tuple(e) for e in epochs}) == 3
    assert stream(shuffle=False, batch_size=12, total_samples=12)[0].keys == [f"image{i % 10}" for i in range(12)]


def test_an_enlarged_epoch_takes_every_image_as_often():
    numbers = SampleStream(Numbers(), seed=0, enlarge=3)
    drawn = [numbers.index(s) for s in range(numbers.epoch_length)]
    assert np.bincount(drawn).tolist() == [3] * 10
    assert sorted(drawn[:10]) != list(range(10))


def test_seeds_give_other_streams():
    assert not torch.equal(stream(seed=1)[0].lq, stream(seed=2)[0].lq)


def test_global_random_streams_are_left_alone():
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    stream()
    stream(num_workers=1, total_samples=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


@pytest.mark.parametrize("num_workers", [0, 2])
def test_errors_arrive_with_their_own_message(num_workers):
    batches = train_batches(Numbers(broken=7), seed=0, batch_size=5, total_samples=10, num_workers=num_workers)
    with pytest.raises(ImageError) as caught:
        list(batches)
    assert str(caught.value) == "folder/image7.png: truncated PNG"


def test_an_error_that_is_kept_keeps_no_processes():
    """Else the process would wait for them at its end."""
    others = set(multiprocessing.active_children())
    with pytest.raises(ImageError) as kept:
        list(train_batches(Numbers(broken=7), seed=0, batch_size=5, total_samples=10, num_workers=2))
    assert kept.value.__traceback__ is not None
    assert set(multiprocessing.active_children()) <= others


def test_numbers_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match=r"batch_size: 4.*3 ranks"):
        stream(world_size=3)
    with pytest.raises(ValueError, match="samples 2 to 48"):
        stream(start_sample=2)


def test_validation_depends_on_the_key_only_and_is_shared_by_ranks():
    whole = list(eval_samples(Numbers(), seed=3))
    assert [s.key for s in whole] == [f"image{i}" for i in range(10)]
    for ranks, workers in ((1, 2), (3, 0)):
        parts = [list(eval_samples(Numbers(), 3, r, ranks, workers)) for r in range(ranks)]
        got = {s.key: s for part in parts for s in part}
        assert all(torch.equal(got[s.key].lq, s.lq) for s in whole)


def test_a_batch_counts_the_regions_of_its_richest_image():
    samples = [Numbers().get(i, np.random.default_rng(i)) for i in (0, 1, 2)]
    batch = collate(samples, [7, 8, 9])
    assert (batch.region_count, batch.numbers, batch.regions.shape) == (6, [7, 8, 9], (3, 2, 2))
    assert batch.to("meta").gt.device.type == "meta"
    assert collate([Sample("a", torch.zeros(3, 2, 2), torch.zeros(3, 2, 2))]).region_count == 0


def test_samples_that_do_not_stack_are_named():
    samples = [Sample(k, torch.zeros(3, n, 2), torch.zeros(3, n, 2)) for k, n in (("a", 2), ("b", 3))]
    with pytest.raises(ValueError, match=r"lq is \(3, 2, 2\) for a, \(3, 3, 2\) for b; set gt_size"):
        collate(samples)


def test_ranks_beyond_the_validation_images_get_none():
    parts = [[s.key for s in eval_samples(Numbers(), 3, r, world_size=12)] for r in range(12)]
    assert parts == [[f"image{i}"] for i in range(10)] + [[], []]


class Plain(Numbers):
    """Numbers without masks; counts what is read."""

    def __init__(self, bad=()):
        super().__init__()
        self.bad, self.reads = set(bad), 0

    def get(self, index, rng):
        self.reads += 1
        if index in self.bad:
            raise ImageError(f"folder/image{index}.png: truncated PNG")
        return dataclasses.replace(super().get(index, rng), maps={})


def plain(dataset=None, **arguments):
    options = {"seed": 1, "batch_size": 4, "total_samples": 48, "total_batch": 12, "mixup": Mixup()} | arguments
    return list(train_batches(dataset or Plain(), **options))


def images(batches, field="lq"):
    return torch.cat([getattr(b, field) for b in batches])


def plans(seed=1, count=400, **arguments):
    return [Mixup(**arguments).plan(seed, 12 * i, 12) for i in range(count)]


def test_mixup_blends_lq_and_gt_alike_with_samples_of_the_total_batch():
    mixed, unmixed = plain(), plain(mixup=None)
    for first in range(0, 48, 12):
        lam, partners = Mixup().plan(1, first, 12)
        assert sorted(partners) == list(range(first, first + 12))
        for field in ("lq", "gt"):
            whole = images(unmixed, field)
            expected = whole[first : first + 12] * lam + whole[list(partners)] * (1 - lam)
            torch.testing.assert_close(images(mixed, field)[first : first + 12], expected)
    assert [b.keys for b in mixed] == [b.keys for b in unmixed]
    assert not torch.equal(images(mixed), images(unmixed))


@pytest.mark.parametrize("arguments", [{"batch_size": 1}, {"batch_size": 12}, {"num_workers": 2}])
def test_mixup_does_not_depend_on_micro_batches_or_workers(arguments):
    assert torch.equal(images(plain(**arguments)), images(plain()))


def test_mixup_does_not_depend_on_ranks_and_goes_on_after_a_resume():
    ranks = [plain(rank=r, world_size=2) for r in range(2)]
    together = [torch.cat([p.lq for p in parts]) for parts in zip(*ranks, strict=True)]
    assert torch.equal(torch.cat(together), images(plain()))
    assert torch.equal(images(plain(start_sample=24)), images(plain())[24:])


def test_a_later_stage_counts_its_total_batches_from_its_own_start():
    """A stage of progressive training that begins at sample 20 with total batches of 8."""
    stage = {"start_sample": 20, "total_samples": 36, "total_batch": 8, "batch_size": 2}
    lam, partners = Mixup().plan(1, 28, 8)
    whole = images(plain(mixup=None, total_samples=36, total_batch=None))
    expected = whole[28:36] * lam + whole[list(partners)] * (1 - lam)
    torch.testing.assert_close(images(plain(**stage))[8:], expected)


def test_mixing_shares_follow_the_beta_distribution_and_identity_takes_half():
    shares = np.array([lam for lam, _ in plans(use_identity=False, beta=1.2)])
    assert abs(shares.mean() - 0.5) < 5 * shares.std() / 20
    assert abs(shares.var() - 1 / (4 * (2 * 1.2 + 1))) < 0.012  # variance of Beta(b, b)
    identity = [
        lam == 1 and list(partners) == list(range(12 * i, 12 * i + 12)) for i, (lam, partners) in enumerate(plans())
    ]
    assert 150 < sum(identity) < 250
    assert plans()[7] == plans()[7] != plans(seed=2)[7]


def test_partners_of_the_same_micro_batch_are_read_once():
    dataset = Plain()
    plain(dataset, batch_size=12, mixup=Mixup(use_identity=False))
    assert dataset.reads == 48


def test_mixup_refuses_masks_and_numbers_that_do_not_divide():
    with pytest.raises(ValueError, match=r"image\d: mixup blends two images, whose masks"):
        plain(Numbers())
    with pytest.raises(ValueError, match=r"total_batch: 6 .*batch of 4"):
        plain(total_batch=6)
    with pytest.raises(ValueError, match=r"samples 4 to 48 a whole number"):
        plain(start_sample=4)
    with pytest.raises(ValueError, match="mixup_beta: 0"):
        Mixup(beta=0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_images_are_replaced_and_named(num_workers):
    bad = {"dataset": Plain(bad=[2, 7]), "mixup": None, "bad_images": "skip", "num_workers": num_workers}
    batches, whole = plain(**bad), plain(mixup=None)
    keys, expected = (list(itertools.chain(*(b.keys for b in bs))) for bs in (batches, whole))
    replaced = [i for i, key in enumerate(expected) if key in ("image2", "image7")]
    assert len(replaced) >= 8
    assert not {"image2", "image7"} & set(keys)
    assert [i for i, (one, other) in enumerate(zip(keys, expected, strict=True)) if one != other] == replaced
    kept = [i for i in range(48) if i not in replaced]
    assert torch.equal(images(batches)[kept], images(whole)[kept])
    messages = list(itertools.chain(*(b.skipped for b in batches)))
    assert set(messages) == {f"folder/image{i}.png: truncated PNG" for i in (2, 7)}
    assert not any(b.skipped for b in whole)
    assert len({keys[i] for i in replaced}) > 2


def test_replacements_do_not_depend_on_batches_and_ranks_and_are_mixed_as_any_other():
    bad = {"bad_images": "skip", "mixup": None}
    whole = images(plain(Plain(bad=[2, 7]), **bad))
    assert torch.equal(images(plain(Plain(bad=[2, 7]), batch_size=12, **bad)), whole)
    assert torch.equal(images(plain(Plain(bad=[2, 7]), start_sample=24, **bad)), whole[24:])
    lam, partners = Mixup(use_identity=False).plan(1, 0, 12)
    mixed = plain(Plain(bad=[2, 7]), bad_images="skip", mixup=Mixup(use_identity=False), batch_size=12)[0]
    torch.testing.assert_close(mixed.lq, whole[:12] * lam + whole[list(partners)] * (1 - lam))
    assert len(mixed.skipped) == len(set(mixed.skipped)) > 0


def test_a_data_set_of_bad_images_stops_in_the_end():
    with pytest.raises(ValueError, match=r"sample 0 and 10 images in its place.*folder/image\d.png: truncated"):
        plain(Plain(bad=range(10)), bad_images="skip", mixup=None)
    with pytest.raises(ValueError, match="bad_images: 'skp' must be"):
        plain(bad_images="skp")


class Unpicklable(Exception):
    def __init__(self, name, number):
        super().__init__(f"{name} {number}")


class Buggy(Plain):
    """A plugin whose code raises something that says nothing about an image."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def get(self, index, rng):
        if index == 7:
            raise self.error
        return super().get(index, rng)


@pytest.mark.parametrize("bad_images", ["stop", "skip"])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("error", [KeyError("a bug"), ValueError("a bug"), RuntimeError("a bug")], ids=repr)
def test_a_bug_is_no_bad_image_and_keeps_its_traceback(error, num_workers, bad_images):
    with pytest.raises(type(error), match="a bug") as caught:
        plain(Buggy(error), bad_images=bad_images, num_workers=num_workers, mixup=None)
    shown = "".join(traceback.format_exception(caught.type, caught.value, caught.tb))
    assert "in get" in shown
    assert "raise self.error" in shown


def test_a_bug_whose_exception_cannot_be_pickled_ends_the_run_too():
    with pytest.raises(RuntimeError, match="Unpicklable: a bug 3") as caught:
        plain(Buggy(Unpicklable("a bug", 3)), num_workers=2, mixup=None)
    assert "raise self.error" in str(caught.value.__cause__)
