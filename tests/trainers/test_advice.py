import pytest

from paligemma.models import stack
from paligemma.planning import advice, memory
from paligemma.planning.memory import GIB, Memory
from trainers.plan import Plan


def lines(
  tiny,
  arguments,
  temporaries,
  *,
  what="train",
  usable=16,
  peak_with=None,
  **values,
):
  config = tiny.config(
    {"frozen_dtype": "float32", **values}, tune="full", batch_size=64
  )
  plan = Plan(config, examples_per_epoch=10)
  needed = Memory(int(arguments * GIB), int(temporaries * GIB))
  return advice.advise(
    plan, needed, usable * GIB, what=what, peak_with=peak_with
  )


def test_nothing_to_say_about_what_fits(tiny):
  assert lines(tiny, 9, 7) == []


def test_large_temporaries_ask_for_fewer_examples(tiny):
  first, *found = lines(tiny, 4, 30)
  assert first == "34.00 GiB needed, 16.00 usable: 18.00 too much"
  # 8 examples on each of 8 devices: 30 GiB / 4 is below 12, 30 / 2 is not.
  assert found[:2] == [
    "accumulate_steps=4: the same batch in turns",
    "batch_size=24, about; see --largest_batch",
  ]
  assert found[2].startswith("tune=attention: 0.00 GiB more of parameters")
  assert found[-1] == "more than 8 devices, with fewer examples on each"


@pytest.mark.parametrize("policy", stack.REMAT_POLICIES)
def test_a_policy_is_advised_only_where_it_keeps_less(tiny, policy):
  values = {"model.img.remat_policy": "none", "model.llm.remat_policy": policy}
  keeps_all = policy == "none"
  tried = []

  def advised(less, values):
    def peak_with(policies):
      tried.append(policies)
      return int((34 - less) * GIB)

    found = lines(tiny, 4, 30, peak_with=peak_with, **values)
    return [line for line in found if line.startswith("remat_policy=")]

  where = "model.img and model.llm" if keeps_all else "model.img"
  assert advised(2.5, values) == [
    f"remat_policy=block_inputs in {where}: 2.50 GiB less"
  ]
  towers = ("img", "llm") if keeps_all else ("img",)
  assert tried == [dict.fromkeys(towers, "block_inputs")]
  assert advised(0, values) == advised(-1, values) == []
  assert bool(advised(1, dict.fromkeys(values, policy))) == keeps_all


def test_what_is_advised_keeps_less_of_a_compiled_step(tiny):
  def compiled(policies):
    values = {"model.dtype": "bfloat16"}
    for tower, policy in policies.items():
      # Deep, so that what layers keep outweighs what a layer needs.
      values[f"model.{tower}.remat_policy"] = policy
      values[f"model.{tower}.depth"] = 29
    config = tiny.config(values, tune="attention", batch_size=32, text_len=97)
    plan = Plan(config, examples_per_epoch=10)
    needed = memory.of(plan.compile_step())
    peaks.append(needed.peak)
    return plan, needed

  peaks = []
  plan, needed = compiled({"img": "none", "llm": "none"})
  found = advice.advise(
    plan, needed, 2, peak_with=lambda policies: compiled(policies)[1].peak
  )
  assert peaks[0] > 1.1 * peaks[1]
  less = (peaks[0] - peaks[1]) / GIB
  where = "model.img and model.llm"
  assert f"remat_policy=block_inputs in {where}: {less:.2f} GiB less" in found


def test_large_arguments_ask_for_less_to_keep(tiny):
  _, *found = lines(
    tiny, 40, 4, **{"optimizer": "adam", "ema_decay": 0.9, "mesh.model": 2}
  )
  starts = [line.split(":")[0].split(" keeps")[0] for line in found]
  assert starts == [
    "tune=attention",
    "optimizer=adam",
    "ema_decay=None",
    "32 devices with the same batch on each",
    "no smaller batch is enough",
  ]


def test_frozen_parameters_need_not_be_float32(tiny):
  config = tiny.config({"frozen_dtype": "float32"}, tune="attention")
  plan = Plan(config, examples_per_epoch=10)
  found = advice.advise(plan, Memory(20 * GIB, GIB), 16 * GIB)
  assert any(line.startswith("frozen_dtype=bfloat16: ") for line in found)
  assert not any(line.startswith("tune=attention") for line in found)


@pytest.mark.parametrize("temporaries", [20, 300])
def test_decoding_has_no_gradients_to_save(tiny, temporaries):
  _, *found = lines(tiny, 4, temporaries, what="decode")
  assert (
    found[0]
    == {
      20: "batch_size=32, about; see --largest_batch",
      300: "one example on each device is too much: smaller res",
    }[temporaries]
  )
  assert len(found) == 2
