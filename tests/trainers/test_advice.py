import pytest

from paligemma.models import stack
from paligemma.planning import advice, memory
from paligemma.planning.memory import GIB, Memory
from trainers.plan import Plan


def lines(tiny, arguments, temporaries, *, what="train", usable=16, **values):
  config = tiny.config(
    {"frozen_dtype": "float32", **values}, tune="full", batch_size=64
  )
  plan = Plan(config, examples_per_epoch=10)
  needed = Memory(int(arguments * GIB), int(temporaries * GIB))
  return advice.advise(plan, needed, usable * GIB, what=what)


def test_nothing_to_say_about_what_fits(tiny):
  assert lines(tiny, 9, 7) == []


def test_large_temporaries_ask_for_fewer_examples(tiny):
  first, *found = lines(tiny, 4, 30)
  assert first == "34.00 GiB needed, 16.00 usable: 18.00 too much"
  # 8 examples on each of 8 devices: 30 GiB / 4 is below 12, 30 / 2 is not.
  assert found[:3] == [
    "remat_policy=block_inputs in model.img and model.llm: keeps the least of "
    "each layer",
    "accumulate_steps=4: the same batch in turns",
    "batch_size=24, about; see --largest_batch",
  ]
  assert found[3].startswith("tune=attention: 0.00 GiB more of parameters")
  assert found[-1] == "more than 8 devices, with fewer examples on each"


def test_no_policy_keeps_less_than_the_advised_one(tiny):
  def temporaries(policy):
    values = {"model.dtype": "bfloat16"}
    for tower in ("img", "llm"):
      # Deep, so that what layers keep outweighs what a layer needs.
      values |= {
        f"model.{tower}.remat_policy": policy,
        f"model.{tower}.depth": 29,
      }
    config = tiny.config(values, tune="attention", batch_size=32, text_len=97)
    plan = Plan(config, examples_per_epoch=10)
    return memory.of(plan.compile_step()).temporaries

  least = temporaries(advice.LEAST)
  others = set(stack.REMAT_POLICIES) - {advice.LEAST}
  assert all(temporaries(policy) > 1.1 * least for policy in others)


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
