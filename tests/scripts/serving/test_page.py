"""The page in a browser, before a server whose answers are known."""

import functools
import http.server
import io
import json
import pathlib
import shutil
import threading

import axe_playwright_python.sync_playwright as axe
import numpy as np
import pytest
from PIL import Image
from playwright import sync_api

from paligemma.data import masks

PAGE = pathlib.Path(__file__).parents[3] / "scripts/serving/page"
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
POLICY = (
  "default-src 'none'; script-src 'self'; style-src 'self'; "
  "connect-src 'self'; img-src 'self' data: blob:; "
  "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FAILED = "Failed to load resource:"  # how Chromium begins
SIZE = 200, 100  # of the picture, width and height
SIDES = "200 \N{MULTIPLICATION SIGN} 100"
GRAY = [90, 90, 90]
AMBER, CYAN = [255, 176, 0], [76, 201, 240]


def found():
  """What the server finds: a cat, with a mask in half of its box, and a dog."""
  mask = np.zeros(SIZE[::-1], bool)
  mask[20:80, 20:50] = True
  return [
    {
      "label": "cat",
      "box": [20.0, 20.0, 80.0, 80.0],
      "score": 0.9,
      "mask": masks.to_compressed_rle(mask),
    },
    {"label": "dog", "box": [120.0, 40.0, 190.0, 90.0], "score": 0.4},
  ]


class Handler(http.server.SimpleHTTPRequestHandler):
  """Serves the page, and answers as the API does."""

  protocol_version = "HTTP/1.1"

  def log_message(self, *_):
    pass

  def end_headers(self):
    self.send_header("Content-Security-Policy", POLICY)
    super().end_headers()

  def do_GET(self):
    if self.path != "/v1/models":
      super().do_GET()
    elif self.is_allowed():
      names = ("paligemma", "cats")
      self.send({"object": "list", "data": [{"id": name} for name in names]})

  def do_POST(self):
    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    self.server.asked.append((self.path, body))
    if not self.is_allowed():
      return
    if self.server.error:
      status, message = self.server.error
      self.send({"error": {"message": message}}, status)
    elif self.path == "/v1/chat/completions":
      self.stream()
    else:
      objects = [] if "unicorn" in body["prompt"] else found()
      text = "; ".join(f"<loc0000> {item['label']}" for item in objects)
      self.send({"text": text, "objects": objects, "image_size": SIZE})

  def is_allowed(self):
    given = self.headers["Authorization"]
    if self.server.token and given != f"Bearer {self.server.token}":
      self.send({"error": {"message": "no such token"}}, 401)
      return False
    return True

  def send(self, value, status=200):
    body = json.dumps(value).encode()
    self.send_response(status)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  def stream(self):
    self.send_response(200)
    self.send_header("Content-Type", "text/event-stream")
    self.send_header("Connection", "close")
    self.end_headers()
    for text, reason in (("a gray ", None), ("wall ü", None), ("", "stop")):
      choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
      event = f"data: {json.dumps({'choices': [choice]}, ensure_ascii=False)}"
      for byte in (f"{event}\n\n").encode():  # also within a character
        self.wfile.write(bytes([byte]))
      self.server.pause.wait(20)
    self.wfile.write(b"data: [DONE]\n\n")


@pytest.fixture
def server():
  """A server whose `asked` are the requests; it waits for `pause`."""
  handler = functools.partial(Handler, directory=PAGE)
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as made:
    made.asked, made.error, made.token = [], None, None
    made.pause = threading.Event()
    made.pause.set()
    made.url = f"http://127.0.0.1:{made.server_port}"
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.pause.set()
    made.shutdown()
    thread.join()


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
  said, asked, contexts = [], [], []

  def opened(**options):
    context = browser.new_context(**{"permissions": ["camera"], **options})
    contexts.append(context)
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda line: said.append(line.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url)
    return page

  opened.expected = ()
  yield opened
  for context in contexts:
    context.close()
  assert [text for text in said if not text.startswith(opened.expected)] == []
  here = server.url, "data:", "blob:"
  assert [url for url in asked if not url.startswith(here)] == []


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


def test_boxes_and_masks_are_drawn_where_they_are(opened, server):
  page = opened()
  upload(page)
  assert pixel(page, 20, 50) == GRAY
  card = ask(page, "segment", "cat, dog")
  sync_api.expect(card.locator(".text")).to_have_text("2 found.")
  ((path, body),) = server.asked
  assert path == "/v1/segment"
  assert body["prompt"] == "segment cat ; dog"
  assert body["image"].startswith("data:image/png;base64,")
  assert body["model"] == "paligemma"
  for x, y in ((20, 50), (80, 60), (50, 80)):
    assert pixel(page, x, y) == AMBER
  assert pixel(page, 155, 90) == pixel(page, 190, 60) == CYAN
  assert is_between(pixel(page, 35, 70), GRAY, AMBER)  # in the mask
  assert pixel(page, 65, 70) == GRAY  # in the box alone
  rows = [
    row.inner_text().split("\t") for row in card.locator("tbody tr").all()
  ]
  assert rows == [
    ["cat", "0.90", "20, 20, 80, 80"],
    ["dog", "0.40", "120, 40, 190, 90"],
  ]
  assert page.get_attribute("#canvas", "aria-label") == (
    "wall.png with cat 0.90, dog 0.40"
  )


def test_what_is_below_the_threshold_is_not_shown(opened):
  page = opened()
  upload(page)
  card = ask(page, "detect", "cat; dog")
  sync_api.expect(card.locator("tbody tr")).to_have_count(2)
  page.focus("#threshold")
  page.keyboard.press("End")
  for _ in range(4):
    page.keyboard.press("PageDown")
  assert page.text_content("#least") == "0.60"
  assert card.locator("tbody tr").count() == 1
  assert card.locator(".text").inner_text() == (
    "2 found, 1 of them below the least score."
  )
  assert pixel(page, 190, 60) == GRAY
  assert pixel(page, 80, 60) == AMBER


def test_several_questions_on_one_picture(opened, server):
  page = opened()
  upload(page)
  ask(page, "detect", "cat")
  server.pause.clear()
  card = ask(page, "ask", "what is this?")
  text = card.locator(".text")
  sync_api.expect(text).to_have_text("a gray ")  # while the rest is decoded
  server.pause.set()
  sync_api.expect(text).to_have_text("a gray wall ü")
  sync_api.expect(page.locator("#status")).to_have_text("Answered.")
  path, body = server.asked[1]
  (message,) = body["messages"]
  image, question = message["content"]
  assert path == "/v1/chat/completions"
  assert question["text"] == "answer en what is this?"
  assert image["image_url"]["url"] == server.asked[0][1]["image"]
  assert pixel(page, 80, 60) == AMBER  # the boxes stay
  second = ask(page, "detect", "unicorn")
  sync_api.expect(second.locator(".text")).to_have_text("Nothing found.")
  assert pixel(page, 80, 60) == GRAY  # the newest alone
  page.locator("#answers li").nth(2).locator(".shown input").check()
  assert pixel(page, 80, 60) == AMBER
  upload(page)
  assert page.locator("#answers li").count() == 0


def test_prompts_and_settings_are_sent(opened, server):
  page = opened()
  upload(page)
  page.select_option("#model", "cats")
  page.click("summary")
  for name, value in (("language", "de"), ("tokens", "7"), ("seed", "3")):
    page.fill(f"#{name}", value)
  page.fill("#temperature", "0.5")
  page.fill("#top-p", "0.9")
  for task in ("caption", "read"):
    sync_api.expect(ask(page, task).locator(".stop")).to_be_hidden()
  sync_api.expect(
    ask(page, "prompt", "detect it").locator("table")
  ).to_be_visible()
  paths, bodies = zip(*server.asked, strict=True)
  assert paths == ("/v1/chat/completions",) * 2 + ("/v1/detect",)
  texts = [body["messages"][0]["content"][1]["text"] for body in bodies[:2]]
  assert texts == ["caption de", "ocr"]
  assert bodies[2]["prompt"] == "detect it"
  expected = {"model": "cats", "max_tokens": 7, "seed": 3}
  expected |= {"temperature": 0.5, "top_p": 0.9}
  assert all(expected.items() <= body.items() for body in bodies)


def test_an_answer_can_be_stopped(opened, server):
  page = opened()
  upload(page)
  server.pause.clear()
  card = ask(page, "caption")
  sync_api.expect(card.locator(".text")).to_have_text("a gray ")
  card.locator(".stop").click()
  sync_api.expect(card.locator(".text")).to_have_text("a gray \nStopped.")
  assert page.text_content("#status") == "Stopped."


def test_downloads(opened):
  page = opened()
  upload(page)
  sync_api.expect(ask(page, "detect", "cat").locator("table")).to_be_visible()
  with page.expect_download() as event:
    page.click("#save-json")
  assert event.value.suggested_filename == "wall.json"
  written = json.loads(pathlib.Path(event.value.path()).read_text())
  assert (written["image"], written["image_size"]) == ("wall.png", [200, 100])
  (answer,) = written["answers"]
  assert (answer["task"], answer["prompt"]) == ("detect", "detect cat")
  assert answer["objects"] == found()
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
  page.click("#shoot")
  sync_api.expect(page.locator("#status")).to_contain_text("camera.jpg, ")
  assert not page.is_visible("#camera-dialog")
  file = {"name": "x.png", "mimeType": "image/png", "buffer": b"no picture"}
  page.set_input_files("#file", file)
  sync_api.expect(page.locator("#status")).to_have_text(
    "x.png is no picture that this browser can show."
  )


def test_by_keyboard_alone(opened, server):
  page = opened()
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
  sync_api.expect(page.locator("tbody tr")).to_have_count(2)
  assert server.asked[0][1]["prompt"] == "detect cat"
  outlined = page.evaluate(
    "getComputedStyle(document.querySelector('#text:focus')).outlineStyle"
  )
  assert outlined == "solid"


def test_a_token_is_asked_for(opened, server):
  server.token = "right"
  opened.expected = f"{FAILED} the server responded with a status of 401"
  page = opened()
  dialog = page.locator("#token-dialog")
  sync_api.expect(dialog).to_be_visible()
  page.fill("#token", "wrong")
  page.keyboard.press("Enter")
  sync_api.expect(page.locator("#token-hint")).to_have_text(
    "The server refused this token."
  )
  page.fill("#token", "right")
  page.keyboard.press("Enter")
  sync_api.expect(dialog).to_be_hidden()
  assert page.locator("#model option").all_inner_texts() == [
    "paligemma",
    "cats",
  ]
  page.reload()
  sync_api.expect(page.locator("#model option")).to_have_count(2)


def test_errors_are_one_line(opened, server):
  opened.expected = (
    f"{FAILED} the server responded with a status of 429",
    f"{FAILED} net::ERR_CONNECTION_REFUSED",
  )
  page = opened()
  page.click("#send")
  assert page.text_content("#status") == "Choose a picture first."
  upload(page)
  server.error = 429, "too many requests wait; try again in a minute"
  card = ask(page, "caption")
  for place in (card.locator(".text"), page.locator("#status")):
    sync_api.expect(place).to_have_text(server.error[1])
  page.route("**/v1/detect", lambda route: route.abort("connectionrefused"))
  sync_api.expect(ask(page, "detect", "cat").locator(".text")).to_have_text(
    "The server cannot be reached. Is it still running?"
  )


@pytest.mark.parametrize(
  ("width", "scheme"),
  [(360, "light"), (360, "dark"), (1280, "light"), (1280, "dark")],
)
def test_anybody_can_use_it(opened, server, width, scheme):
  """At the width of a phone nothing lies outside; axe finds no grave fault."""
  page = opened(
    viewport={"width": width, "height": 740},
    color_scheme=scheme,
    reduced_motion="reduce",
  )
  faults = axe.Axe().run(page).response["violations"]
  upload(page)
  ask(page, "caption")
  sync_api.expect(
    ask(page, "segment", "cat, dog").locator("table")
  ).to_be_visible()
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
  faults += axe.Axe().run(page).response["violations"]
  grave = [
    (fault["id"], [node["html"] for node in fault["nodes"]])
    for fault in faults
    if fault["impact"] in ("serious", "critical")
  ]
  assert grave == []
