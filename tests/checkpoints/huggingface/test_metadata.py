"""What a folder says beside its model: read in any spelling, written again."""

import json

import pytest

from paligemma.checkpoints.huggingface import metadata

CONFIG = {
  "model_type": "paligemma",
  "vision_config": {"image_size": 28, "num_image_tokens": 4},
}


@pytest.fixture
def folder(tmp_path):
  def write(**files):
    for name, content in files.items():
      suffix = "jinja" if name == "chat_template_" else "json"
      text = content if isinstance(content, str) else json.dumps(content)
      (tmp_path / f"{name.rstrip('_')}.{suffix}").write_text(text, "utf-8")
    return tmp_path

  return write


def read(folder, has_images=True):
  return metadata.read(folder, has_images=has_images)


def test_nothing_there_is_as_transformers_does_it(folder):
  assert read(folder()) == {"preprocessing": "hf"}
  assert read(folder(), has_images=False) == {}


@pytest.mark.parametrize(
  ("resample", "name"), [(3, "hf"), (2, "reference"), (None, "hf")]
)
def test_the_filter_tells_the_preprocessing(folder, resample, name, caplog):
  path = folder(preprocessor_config={"resample": resample})
  assert read(path)["preprocessing"] == name
  assert not caplog.text


def test_the_image_processor_of_transformers_5(folder):
  processor = {"resample": 2, "image_mean": [0.5, 0.5, 0.5]}
  path = folder(processor_config={"image_processor": processor})
  assert read(path) == {"preprocessing": "reference", "processor": processor}
  path = folder(processor_config={"image_processor": 3})
  with pytest.raises(ValueError, match=r"config\.json: image_process"):
    read(path)


@pytest.mark.parametrize(
  "processor",
  [
    {"resample": 1},
    {"resample": "bicubic"},
    {"image_mean": [0.48, 0.46, 0.41]},
    {"image_std": 0.5},
    {"do_normalize": False},
    {"rescale_factor": 1},
  ],
)
def test_what_is_not_done_here_is_said(folder, processor, caplog):
  path = folder(preprocessor_config=processor)
  with caplog.at_level("WARNING"):
    assert read(path)["preprocessing"] == "hf"
  (key,) = processor
  assert f"its image processor has {key}=" in caplog.text
  assert 'prepared as "hf"' in caplog.text
  assert len(caplog.text.splitlines()) == 1


def test_the_chat_template_is_looked_for_where_it_may_be(folder):
  path = folder(tokenizer_config={"chat_template": "c"})
  assert read(path)["chat_template"] == "c"
  path = folder(chat_template={"chat_template": "b"})
  assert read(path)["chat_template"] == "b"
  path = folder(chat_template_="a")
  assert read(path)["chat_template"] == "a"


def test_a_chat_template_of_ours_is_none_of_the_model(tmp_path):
  metadata.write(tmp_path, {}, CONFIG)
  assert "<image>" in (tmp_path / "chat_template.jinja").read_text()
  assert "chat_template" not in read(tmp_path)


@pytest.mark.parametrize(
  "name", ["generation_config", "preprocessor_config", "tokenizer_config"]
)
@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000])
def test_damage(folder, name, content):
  path = folder(**{name: content})
  with pytest.raises(ValueError, match=rf"{name}\.json: is no JSON") as error:
    read(path)
  assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
  ("name", "resample"),
  [("hf", 3), ("bicubic", 3), ("reference", 2), ("bilinear", 2)],
)
def test_written_as_it_is_prepared(tmp_path, name, resample):
  stated = {"preprocessing": name, "processor": {"do_pad": 1, "resample": 9}}
  metadata.write(tmp_path, stated, CONFIG)
  found = json.loads((tmp_path / "preprocessor_config.json").read_text())
  assert (found["resample"], found["do_pad"]) == (resample, 1)
  assert found["size"] == {"height": 28, "width": 28}
  assert found["image_seq_length"] == 4


def test_what_transformers_cannot_do_is_said(tmp_path, caplog):
  stated = {"preprocessing": "of my own"}
  with caplog.at_level("WARNING"):
    metadata.write(tmp_path, stated, CONFIG)
  assert 'transformers has no "of my own", pictures will be' in caplog.text
