"""The page in a browser, before a server whose engine has answers ready."""

import contextlib
import io
import json
import pathlib
import re
import shutil
import threading
import urllib.request

import axe_playwright_python.sync_playwright as axe
import numpy as np
import pytest
from PIL import Image
from playwright import sync_api

from paligemma.data import location
from paligemma.serving import request
from scripts import serve
from tests.scripts.serving import conftest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
  CHROMIUM is None, reason="no Chromium here: apt-get install chromium"
)
# Without them Chromium asks for updates, and as root it does not start.
ARGUMENTS = (
  *("--no-sandbox", "--disable-gpu", "--disable-background-networking"),
  *("--disable-component-update", "--disable-sync", "--no-first-run"),
  *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
)
FAILED = "Failed to load resource:"  # how Chromium begins
SIZE = 200, 100  # of the picture, width and height
SIDES = "200 \N{MULTIPLICATION SIGN} 100"
GRAY = [90, 90, 90]
AMBER, CYAN = [255, 176, 0], [76, 201, 240]
CAT, DOG = (20, 20, 80, 80), (40, 120, 90, 190)  # y0, x0, y1, x1


def objects(codes=None):
  cat = location.Object(CAT, "cat", codes and (7,) * 16)
  return location.encode([cat, location.Object(DOG, "dog")], SIZE[::-1])


# Prompt -> answer. Others are answered with a caption.
ANSWERS = {
  "segment cat ; dog": objects(codes=True),
  "detect cat ; dog": objects(),
  "detect cat": objects(),
  "detect unicorn": "",
  "detect it": "<loc0001><loc0002> it",
}


def half(codes):
  """Decodes masks: the left half is inside."""
  decoded = np.full((len(codes), 64, 64), -1, np.float32)
  decoded[:, :, :32] = 1
  return decoded


class Scripted:
  """Implements request.Engine with ANSWERS; waits for `pause` at each token.

  The tokens before ";" have a score of 0.9, those behind of 0.4.
  """

  adapters = ("cats",)
  ready = True

  def __init__(self, tokenizer):
    self._tokenizer = tokenizer
    self.asked, self.full = [], False
    self.pause = threading.Event()
    self.pause.set()
    self._threads = []

  def submit(self, asked, on_token, on_end):
    if self.full:
      raise request.Full
    self.asked.append(asked)
    stop = threading.Event()
    arguments = asked, on_token, on_end, stop
    thread = threading.Thread(target=self._answer, args=arguments)
    thread.start()
    self._threads.append(thread)
    return stop.set

  def _answer(self, asked, on_token, on_end, stop):
    text = ANSWERS.get(asked.prompt, "a gray wall \u00fc")
    ids = self._tokenizer.encode(text, eos=True)
    score, told = 0.9, ""
    for i, piece in zip(ids, self._tokenizer.pieces(ids), strict=True):
      score = 0.4 if ";" in told else score
      on_token(request.Token(piece, i, float(np.log(score))))
      told += piece
      while not (self.pause.wait(0.05) or stop.is_set()):
        pass
    on_end(request.End("cancelled" if stop.is_set() else "stop", text, 3, 3))

  def counts(self):
    return {}

  def close(self, seconds):
    self.pause.set()
    for thread in self._threads:
      thread.join(seconds)


@pytest.fixture
def engine(tiny_tokenizer):
  return Scripted(tiny_tokenizer)


@pytest.fixture
def server(engine, make_served):
  """Starts a server; arguments as of server.make."""
  with contextlib.ExitStack() as stack:

    def start(**options):
      served = make_served(engine, decode_masks=half)
      return stack.enter_context(conftest.running(served, **options)).address

    yield start


@pytest.fixture(scope="module")
def browser():
  with (
    sync_api.sync_playwright() as play,
    play.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS) as started,
  ):
    yield started


@pytest.fixture
def opened(browser, server):
  """Opens the page, which asks no other host and complains of nothing.

  `opened.expected` begins the lines that a test expects on the console.
  """
  said, asked, contexts, here = [], [], [], ["data:", "blob:"]

  def opened(token=None, **options):
    address = server(token=token)
    here.append(f"{address}/")
    context = browser.new_context(**{"permissions": ["camera"], **options})
    contexts.append(context)
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda line: said.append(line.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    return page

  opened.expected = ()
  yield opened
  for context in contexts:
    context.close()
  assert [text for text in said if not text.startswith(opened.expected)] == []
  assert [url for url in asked if not url.startswith(tuple(here))] == []


def picture():
  file = io.BytesIO()
  Image.new("RGB", SIZE, tuple(GRAY)).save(file, "PNG")
  return {
    "name": "wall.png",
    "mimeType": "image/png",
    "buffer": file.getvalue(),
  }


def upload(page):
  page.set_input_files("#file", picture())
  sync_api.expect(page.locator("#status")).to_have_text(
    f"wall.png, {SIDES} pixels"
  )


def ask(page, task, text=None):
  """Asks, and returns the card of the answer."""
  count = page.locator("#answers li").count()
  page.locator(f"label[for={task}]").click()
  if text is not None:
    page.fill("#text", text)
  page.click("#send")
  sync_api.expect(page.locator("#answers li")).to_have_count(count + 1)
  return page.locator("#answers li").first


def grave_faults(page):
  """What axe finds wrong for people who do not see, hear or point well."""
  return [
    (fault["id"], [node["html"] for node in fault["nodes"]])
    for fault in axe.Axe().run(page).response["violations"]
    if fault["impact"] in ("serious", "critical")
  ]


def rows_of(card):
  return card.locator("tbody tr")


def pixel(page, x, y):
  """What the canvas shows at a position of the picture."""
  return page.evaluate(
    """([x, y]) => {
      const canvas = document.getElementById("canvas");
      const scale = canvas.width / 200;
      const one = new OffscreenCanvas(1, 1).getContext("2d");
      one.drawImage(canvas, -Math.round(x * scale), -Math.round(y * scale));
      return [...one.getImageData(0, 0, 1, 1).data].slice(0, 3);
    }""",
    [x, y],
  )


def is_between(colour, first, second):
  return np.allclose(colour, np.add(first, second) / 2, atol=2)


def test_boxes_and_masks_are_drawn_where_they_are(opened, engine):
  page = opened()
  upload(page)
  assert pixel(page, 20, 50) == GRAY
  card = ask(page, "segment", "cat, dog")
  sync_api.expect(card.locator(".text")).to_have_text("2 found.")
  (asked,) = engine.asked
  assert asked.images[0].shape == (*SIZE[::-1], 3)
  for x, y in ((20, 50), (80, 60), (50, 80)):
    assert pixel(page, x, y) == AMBER
  assert pixel(page, 155, 90) == pixel(page, 190, 60) == CYAN
  assert is_between(pixel(page, 35, 70), GRAY, AMBER)  # in the mask
  assert pixel(page, 65, 70) == GRAY  # in the box alone
  rows = [row.inner_text().split("\t") for row in rows_of(card).all()]
  assert rows == [
    ["cat", "0.90", "20, 20, 80, 80"],
    ["dog", "0.40", "40, 120, 90, 190"],
  ]
  assert page.get_attribute("#canvas", "aria-label") == (
    "wall.png with cat 0.90, dog 0.40"
  )


def test_what_is_below_the_threshold_is_not_shown(opened):
  page = opened()
  upload(page)
  card = ask(page, "detect", "cat; dog")
  sync_api.expect(rows_of(card)).to_have_count(2)
  page.focus("#threshold")
  page.keyboard.press("End")
  for _ in range(4):
    page.keyboard.press("PageDown")
  assert page.text_content("#least") == "0.60"
  assert rows_of(card).count() == 1
  assert card.locator(".text").inner_text() == (
    "2 found, 1 of them below the least score."
  )
  assert pixel(page, 190, 60) == GRAY
  assert pixel(page, 80, 60) == AMBER


def test_several_questions_on_one_picture(opened, engine):
  page = opened()
  upload(page)
  sync_api.expect(rows_of(ask(page, "detect", "cat"))).to_have_count(2)
  engine.pause.clear()
  card = ask(page, "ask", "what is this?")
  text = card.locator(".text")
  sync_api.expect(text).to_have_text(re.compile("^a$|^a gray?"))
  assert card.get_attribute("aria-busy") == "true"  # the rest is not decoded
  engine.pause.set()
  sync_api.expect(text).to_have_text("a gray wall \u00fc")
  sync_api.expect(page.locator("#status")).to_have_text("Answered.")
  first, second = engine.asked
  assert second.prompt == "answer en what is this?"
  assert np.array_equal(first.images, second.images)
  assert pixel(page, 80, 60) == AMBER  # the boxes stay
  card = ask(page, "detect", "unicorn")
  sync_api.expect(card.locator(".text")).to_have_text("Nothing found.")
  assert pixel(page, 80, 60) == GRAY  # the newest alone
  page.locator("#answers li").nth(2).locator(".shown input").check()
  assert pixel(page, 80, 60) == AMBER
  card = ask(page, "prompt", "detect it")
  sync_api.expect(card.locator(".text")).to_have_text(
    "Nothing found; not read: 2 locations and 0 codes, expected 4 locations, "
    "and 16 codes or none."
  )
  assert "it" in card.locator("code").text_content()
  upload(page)
  assert page.locator("#answers li").count() == 0


def test_prompts_and_settings_are_sent(opened, engine):
  page = opened()
  upload(page)
  page.select_option("#model", "cats")
  page.click("summary")
  for name, value in (("language", "de"), ("max_tokens", "7"), ("seed", "3")):
    page.fill(f"#{name}", value)
  page.fill("#temperature", "0.5")
  page.fill("#top_p", "0.9")
  for task in ("caption", "read"):
    sync_api.expect(ask(page, task).locator(".stop")).to_be_hidden()
  sync_api.expect(rows_of(ask(page, "prompt", "detect cat"))).to_have_count(2)
  asked = engine.asked
  assert [x.prompt for x in asked] == ["caption de", "ocr", "detect cat"]
  assert {(x.adapter, x.max_tokens) for x in asked} == {("cats", 7)}
  drawn = [(x.temperature, x.top_p, x.seed) for x in asked[:2]]
  assert drawn == [(0.5, 0.9, 3)] * 2
  assert asked[2].temperature == 0


def test_an_answer_can_be_stopped(opened, engine):
  page = opened()
  upload(page)
  engine.pause.clear()
  card = ask(page, "caption")
  sync_api.expect(card.locator(".text")).not_to_be_empty()
  card.locator(".stop").click()
  sync_api.expect(card.locator(".text")).to_contain_text("Stopped.")
  assert page.text_content("#status") == "Stopped."


def test_a_large_picture_is_made_smaller(opened, engine):
  """The server takes 20 MB and 25 megapixels; phones have more."""
  page = opened()
  file = io.BytesIO()
  Image.new("RGB", (5000, 4100)).save(file, "PNG")
  content = {**picture(), "buffer": file.getvalue()}
  page.set_input_files("#file", content)
  sync_api.expect(page.locator("#status")).to_have_text(
    re.compile("^wall.png, 5000 . 4100 pixels, sent as 4096 . 3359$")
  )
  card = ask(page, "caption")
  sync_api.expect(card.locator(".text")).to_have_text("a gray wall \u00fc")
  assert engine.asked[0].images[0].shape == (3359, 4096, 3)


def test_downloads(opened):
  page = opened()
  upload(page)
  sync_api.expect(rows_of(ask(page, "detect", "cat"))).to_have_count(2)
  with page.expect_download() as event:
    page.click("#save-json")
  assert event.value.suggested_filename == "wall.json"
  written = json.loads(pathlib.Path(event.value.path()).read_text())
  assert written["image"] == "wall.png"
  assert (written["height"], written["width"]) == SIZE[::-1]
  (answer,) = written["answers"]
  assert answer["prompt"] == "detect cat"
  assert answer["text"] == objects()
  cat, dog = answer["objects"]
  assert np.allclose([cat["box"], dog["box"]], [CAT, DOG], atol=0.1)
  with page.expect_download() as event:
    page.click("#save-picture")
  assert event.value.suggested_filename == "wall-answers.png"
  with Image.open(event.value.path()) as drawn:
    assert drawn.size == (600, 300)  # letters need room
    assert drawn.getpixel((60, 180))[:3] == tuple(AMBER)


def test_dropped_pasted_and_photographed(opened):
  page = opened()
  content = list(picture()["buffer"])
  for event, kind, name in (
    ("drop", "DragEvent", "dataTransfer"),
    ("paste", "ClipboardEvent", "clipboardData"),
  ):
    page.evaluate(
      """([content, event, kind, name]) => {
        const data = new DataTransfer();
        const bytes = [new Uint8Array(content)];
        const file = new File(bytes, `${event}.png`, { type: "image/png" });
        data.items.add(file);
        const options = { [name]: data, bubbles: true, cancelable: true };
        document.body.dispatchEvent(new window[kind](event, options));
      }""",
      [content, event, kind, name],
    )
    sync_api.expect(page.locator("#status")).to_have_text(
      f"{event}.png, {SIDES} pixels"
    )
  page.click("#camera")
  assert grave_faults(page) == []
  page.click("#shoot")
  sync_api.expect(page.locator("#status")).to_contain_text("camera.jpg, ")
  assert not page.is_visible("#camera-dialog")
  file = {"name": "x.png", "mimeType": "image/png", "buffer": b"no picture"}
  page.set_input_files("#file", file)
  sync_api.expect(page.locator("#status")).to_have_text(
    "x.png is no picture that this browser can show."
  )


def test_by_keyboard_alone(opened, engine):
  page = opened()
  # From the first listener on, Chromium shows no dialog of its own.
  page.on("filechooser", lambda chooser: None)
  keys, seen = page.keyboard, []
  for _ in range(4):
    keys.press("Tab")
    seen.append(page.evaluate("document.activeElement.id"))
  assert seen == ["model", "choose", "camera", "caption"]
  page.focus("#choose")
  with page.expect_file_chooser() as chooser:
    keys.press("Enter")
  chooser.value.set_files(picture())
  page.focus("#caption")
  keys.press("ArrowRight")
  keys.press("ArrowRight")
  keys.press("Tab")
  keys.type("cat")
  keys.press("Enter")
  sync_api.expect(rows_of(page)).to_have_count(2)
  assert engine.asked[0].prompt == "detect cat"
  outlined = page.evaluate(
    "getComputedStyle(document.querySelector('#text:focus')).outlineStyle"
  )
  assert outlined == "solid"


def test_a_token_is_asked_for(opened):
  opened.expected = f"{FAILED} the server responded with a status of 401"
  page = opened(token="the right one")
  dialog = page.locator("#token-dialog")
  sync_api.expect(dialog).to_be_visible()
  assert grave_faults(page) == []
  page.fill("#token", "wrong")
  page.keyboard.press("Enter")
  sync_api.expect(page.locator("#token-hint")).to_have_text(
    "The server refused this token."
  )
  page.fill("#token", "the right one")
  page.keyboard.press("Enter")
  sync_api.expect(dialog).to_be_hidden()
  names = page.locator("#model option").all_inner_texts()
  assert names == ["tiny", "cats"]
  page.reload()
  sync_api.expect(page.locator("#model option")).to_have_count(2)


def test_errors_are_one_line(opened, engine):
  opened.expected = (
    f"{FAILED} the server responded with a status of 429",
    f"{FAILED} net::ERR_CONNECTION_REFUSED",
  )
  page = opened()
  page.click("#send")
  assert page.text_content("#status") == "Choose a picture first."
  upload(page)
  engine.full = True
  card = ask(page, "caption")
  for place in (card.locator(".text"), page.locator("#status")):
    sync_api.expect(place).to_have_text(
      "as many requests wait as may; try again"
    )
  page.route("**/v1/detect", lambda route: route.abort("connectionrefused"))
  sync_api.expect(ask(page, "detect", "cat").locator(".text")).to_have_text(
    "The server cannot be reached. Is it still running?"
  )


@pytest.mark.parametrize(
  ("width", "scheme"),
  [(360, "light"), (360, "dark"), (1280, "light"), (1280, "dark")],
)
def test_anybody_can_use_it(opened, width, scheme):
  """At the width of a phone nothing lies outside; axe finds no grave fault."""
  page = opened(
    viewport={"width": width, "height": 740},
    color_scheme=scheme,
    reduced_motion="reduce",
  )
  assert grave_faults(page) == []
  upload(page)
  ask(page, "caption")
  card = ask(page, "segment", "cat, dog")
  sync_api.expect(rows_of(card)).to_have_count(2)
  page.click("summary")
  inner, outer = page.evaluate(
    "[document.documentElement.scrollWidth, window.innerWidth]"
  )
  assert inner <= outer == width
  box = page.locator("#canvas").bounding_box()
  assert box["x"] >= 0 and box["x"] + box["width"] <= width
  small = page.evaluate(
    """[...document.querySelectorAll("button, select, fieldset label")]
      .filter((x) => x.checkVisibility())
      .filter((x) => x.getBoundingClientRect().height < 36)
      .map((x) => x.outerHTML)"""
  )
  assert small == []
  assert grave_faults(page) == []


@pytest.mark.parametrize("frames", [None, "https://huggingface.co"])
def test_no_other_site_may_show_it_in_a_frame(server, frames):
  with urllib.request.urlopen(server(frames=frames)) as answer:
    policy = answer.headers["content-security-policy"]
  allowed = frames or "'none'"
  assert policy.endswith(f"; frame-ancestors {allowed}")
  with pytest.raises(ValueError, match=r'^--frames "a;b": expected sites such'):
    serve.serve("x.npz", "x.model", frames="a;b")
