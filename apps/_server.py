"""The page's routes. Forms are plain HTML and every page is whole: there is no script, so that any browser shows it."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from apps._agents import AgentsDesk
from apps._assistant import MAX_TEXT, AssistantDesk
from apps._lessons import LessonRow, list_lessons, list_question_lessons
from apps._pictures import MAX_PICTURES, MAX_UPLOAD_BYTES, Picture, PictureStore, find_picture
from flows._answer_traces import open_page_run
from flows._layout import Layout
from flows._tracking import TrackedRun
from flows._words import AGENTS_EXPERIMENT, MAX_ANSWER, MAX_COMMENT, PAGE_EXPERIMENT, say_word
from visloop.assistant.program import TASK_INPUTS
from visloop.config import Config
from visloop.errors import ConfigError, DataError, VisloopError

HOSTS = ["127.0.0.1", "localhost"]
MAX_BODY_BYTES = MAX_PICTURES * MAX_UPLOAD_BYTES + 1_000_000
_MEGABYTES = MAX_UPLOAD_BYTES // 1_000_000
_HERE = Path(__file__).parent
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
_THANKS = {
    "new": "Noted, and kept beside the run.",
    "same": "You said that before; it is noted once.",
}


class Desk(Protocol):
    """Who answers on a tab."""

    def find_version(self) -> int | None: ...
    def list_samples(self) -> Sequence[Any]: ...
    def load(self, run_id: str) -> Any: ...
    def ask(self, text: str, *, kind: str, pictures: Sequence[Picture], tracked: TrackedRun) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Tab:
    """One tab: ``path`` of its page, the MLflow experiment of its traces, who answers, and what came of feedback."""

    name: str
    path: str
    experiment: str
    desk: Desk
    list_lessons: Callable[[], list[LessonRow]]

    def link(self, action: str) -> str:
        """The address of ``ask`` or ``say``."""
        return f"{self.path.rstrip('/')}/{action}"


class Page:
    """Both tabs over one project's data folder and MLflow database."""

    def __init__(self, config: Config) -> None:
        self.config, self.layout, self.mlruns = config, Layout.from_config(config), Path(config.paths.mlruns)
        self.pictures = PictureStore(self.layout.root, self.layout.page)
        self.tabs = (
            Tab(
                name="assistant",
                path="/",
                experiment=PAGE_EXPERIMENT,
                desk=AssistantDesk(config, self.layout, pictures=self.pictures),
                list_lessons=partial(list_lessons, self.layout, mlruns=self.mlruns),
            ),
            Tab(
                name="agents",
                path="/agents",
                experiment=AGENTS_EXPERIMENT,
                desk=AgentsDesk(config, self.layout),
                list_lessons=partial(list_question_lessons, self.layout, mlruns=self.mlruns),
            ),
        )
        self.tracked: dict[str, TrackedRun] = {}
        self.templates = Environment(
            loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )

    @asynccontextmanager
    async def open_runs(self, _app: FastAPI) -> AsyncIterator[None]:
        """The MLflow runs that the traces of this process belong to."""
        with ExitStack() as stack:
            for tab in self.tabs:
                self.tracked[tab.experiment] = stack.enter_context(open_page_run(tab.experiment, self.config))
            yield

    def show(
        self, tab: Tab, *, run: str = "", sample: str = "", notice: str = "", error: str = "", typed: Mapping[str, str] | None = None
    ) -> str:
        """The HTML of a tab. ``typed`` is what a form held that could not be taken: it is there again."""
        found = tab.desk.load(run) if run else None
        if run and found is None:
            error = error or f"there is no run {run[:40]!r} on this page; ask, then judge the answer"
        samples = tab.desk.list_samples()
        chosen = next((item for item in samples if item.id == sample), None)
        asked = chosen or (found.asked if found else None)
        fields = {
            "text": "" if asked is None else getattr(asked, "instruction", "") or getattr(asked, "question", ""),
            "kind": getattr(asked, "kind", "vqa"),
            "sample": chosen.id if chosen else "",
            "again": found.key if found and not chosen else "",
        }
        return self.templates.get_template(f"{tab.name}.html.j2").render(
            tab=tab,
            tabs=self.tabs,
            version=tab.desk.find_version(),
            samples=samples,
            kinds=tuple(TASK_INPUTS),
            fields={**fields, **(typed or {})},
            chosen=asked,
            run=found,
            lessons=tab.list_lessons(),
            notice=notice,
            error=error,
            limits={"text": MAX_TEXT, "answer": MAX_ANSWER, "comment": MAX_COMMENT, "megabytes": _MEGABYTES},
        )

    def ask(self, tab: Tab, typed: Mapping[str, str], uploads: Sequence[tuple[str, bytes]]) -> Response:
        """Answer a question; what cannot be answered is said on the page, with what was typed still in the form."""
        try:
            pictures = self._take_pictures(tab, typed, uploads)
            text, kind = typed.get("text", ""), typed.get("kind", "")
            run = tab.desk.ask(text, kind=kind, pictures=pictures, tracked=self.tracked[tab.experiment])
        except VisloopError as error:
            return HTMLResponse(self.show(tab, sample=typed.get("sample", ""), error=str(error), typed=typed), _find_status(error))
        return RedirectResponse(f"{tab.path}?run={run.key}#answer", status_code=303)

    def _take_pictures(self, tab: Tab, typed: Mapping[str, str], uploads: Sequence[tuple[str, bytes]]) -> list[Picture]:
        """The uploads; where there are none, the pictures of the chosen sample, or of the run that is asked again."""
        if uploads:
            return [self.pictures.take_upload(content, name=name) for name, content in uploads]
        sample = next((item for item in tab.desk.list_samples() if item.id == typed.get("sample")), None)
        before = tab.desk.load(typed.get("again", "")) if sample is None else None
        known = sample.images if sample is not None else before.asked.images if before is not None else ()
        return [self.pictures.take_known(path) for path in known]

    def hear(self, tab: Tab, typed: Mapping[str, str]) -> Response:
        """Keep what a person says of a run."""
        run = typed.get("run", "")
        try:
            found = tab.desk.load(run)
            if found is None:
                return HTMLResponse(self.show(tab, run=run, typed=typed), 404)
            if typed.get("verdict") not in ("right", "wrong"):
                raise ConfigError("choose whether the result is right or wrong")
            new = say_word(
                found,
                mlruns=self.mlruns,
                accepted=typed["verdict"] == "right",
                answer=typed.get("answer", ""),
                comment=typed.get("comment", ""),
                person=typed.get("person", ""),
            )
        except VisloopError as error:
            return HTMLResponse(self.show(tab, run=run, error=str(error), typed=typed), _find_status(error))
        return RedirectResponse(f"{tab.path}?run={run}&said={'new' if new else 'same'}#lessons", status_code=303)

    def refuse(self, message: str, status: int) -> Response:
        """A page with nothing but a message."""
        text = self.templates.get_template("refused.html.j2").render(tabs=self.tabs, tab=None, error=message, notice="")
        return HTMLResponse(text, status)


def make_app(config: Config) -> FastAPI:
    """The page as an application."""
    page = Page(config)
    app = FastAPI(lifespan=page.open_runs, docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Any]) -> Response:
        """Nothing from other sites, nothing too large to read."""
        response = _check_request(request, page) or await call_next(request)
        response.headers.update(_HEADERS)
        return response

    # Added last, so that it is asked first: another site's name that points here is no way in.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    for tab in page.tabs:
        _add_routes(app, page, tab)

    @app.get("/pictures/{path:path}")
    def show_picture(path: str) -> Response:
        found = find_picture(page.layout.root, path)
        return PlainTextResponse("no such picture", 404) if found is None else FileResponse(found)

    @app.get("/health")
    def show_health() -> dict[str, int | None]:
        return {tab.name: tab.desk.find_version() for tab in page.tabs}

    return app


def _add_routes(app: FastAPI, page: Page, tab: Tab) -> None:
    @app.get(tab.path, response_class=HTMLResponse)
    def show(run: str = "", sample: str = "", said: str = "") -> str:
        return page.show(tab, run=run, sample=sample, notice=_THANKS.get(said, ""))

    @app.post(tab.link("ask"))
    async def ask(request: Request) -> Response:
        try:
            async with request.form(max_files=MAX_PICTURES + 1, max_fields=20) as form:
                typed, uploads = _read_texts(form), await _read_uploads(form)
        except HTTPException as error:
            return page.refuse(f"the form could not be read: {error.detail}", 400)
        return await run_in_threadpool(page.ask, tab, typed, uploads)

    @app.post(tab.link("say"))
    async def say(request: Request) -> Response:
        async with request.form(max_files=1, max_fields=20) as form:
            typed = _read_texts(form)
        return await run_in_threadpool(page.hear, tab, typed)


def _check_request(request: Request, page: Page) -> Response | None:
    if request.method != "POST":
        return None
    origin, length = request.headers.get("origin"), request.headers.get("content-length", "")
    if origin is not None and origin != f"http://{request.headers.get('host')}":
        return page.refuse("forms are taken from this page only", 403)
    if not length.isdigit() or int(length) > MAX_BODY_BYTES:
        return page.refuse(f"the upload is too large: {MAX_PICTURES} pictures of {_MEGABYTES} MB each are taken at most", 413)
    return None


def _read_texts(form: FormData) -> dict[str, str]:
    return {name: value for name, value in form.items() if isinstance(value, str)}


async def _read_uploads(form: FormData) -> list[tuple[str, bytes]]:
    """Name and content of every file that was chosen; one byte more than allowed is read, so that too large a one is seen."""
    files = [item for item in form.getlist("files") if isinstance(item, UploadFile) and item.filename]
    return [(file.filename or "", await file.read(MAX_UPLOAD_BYTES + 1)) for file in files]


def _find_status(error: VisloopError) -> int:
    """400 for what the person can mend, 503 for what the project lacks."""
    return 400 if isinstance(error, ConfigError | DataError) else 503
