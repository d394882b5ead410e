"""The console's pages of policies, as a browser without JavaScript gets them."""

import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa

from policyd.console.view import labels
from policyd.decision_log.record import ABSENT, INVALID, Record, Verdict
from policyd.engine.decision import INVALID_OVERRIDE
from policyd.engine.places import BODY_PLACES
from policyd.engine.policy import Policy
from policyd.engine.settings import ApiKey, Setting, setting_of
from policyd.engine.states import Ignored, Mode, Override, Source
from policyd.policies import TABLE
from tests.support.consoles import Console, Page, Visitor
from tests.support.records import denied, record, utc_now

ORIGINAL = TABLE.original
POLICIES = TABLE.policies
WITH_VALUE = [policy for policy in POLICIES if policy.kind.value_usage]
WITH_HEADER = [policy for policy in POLICIES if policy.header]
LIMIT = TABLE.by_name["max_tokens"]
PATTERNS = TABLE.by_name["disabled_models"]
RULES = TABLE.by_name["user_format"]


def name_of(policy: Policy) -> str:
    return policy.name


def _panel(page: Page, policy: Policy) -> str:
    """The part of a page that is a policy's panel."""
    found = re.search(rf'<details [^>]*id="policy-{policy.name}".*?</details>', page.text, re.S)
    assert found, policy.name
    return found[0]


def _is_open(panel: str) -> bool:
    return panel.partition(">")[0].endswith(" open")


@dataclass
class Form:
    """The form of a key's settings, filled in as a browser does it."""

    key: ApiKey
    fields: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.fields = [("etag", self.key.etag), ("name", self.key.name)]
        self.fields += [("accept", place) for place in self.key.accept]
        self.fields += [("accept_headers", "")]
        for policy in POLICIES:
            setting = setting_of(self.key.policies, policy.name)
            mode = setting.mode.name.lower() if setting.mode else ""
            override = (setting.override or Override.ANY).name.lower()
            self.fields += [(f"mode.{policy.name}", mode), (f"value.{policy.name}", setting.value)]
            self.fields += [(f"override.{policy.name}", override)] if policy.header else []

    def with_(self, policy: Policy, **typed: str) -> "Form":
        changed = {f"{part}.{policy.name}": value for part, value in typed.items()}
        self.fields = [(name, changed.get(name, value)) for name, value in self.fields]
        return self

    def accepting(self, *places: str, headers: str = "") -> "Form":
        other = [one for one in self.fields if not one[0].startswith("accept")]
        accepted = [("accept", place) for place in places]
        self.fields = [*other, *accepted, ("accept_headers", headers)]
        return self


async def _save(admin: Visitor, form: Form) -> Page:
    return await admin.post(f"/keys/{form.key.id}", form.fields)


def _set(console: Console, key: ApiKey, policy: Policy) -> Setting:
    return setting_of(console.store.keys.get(key.id).policies, policy.name)


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
async def test_a_panel(console: Console, admin: Visitor, policy: Policy) -> None:
    """Each policy has a panel, made from what it declares; it is closed while it is not set, unless
    it is the original one.
    """
    key, _ = console.store.keys.create("app")
    panel = _panel(await admin.get(f"/keys/{key.id}"), policy)
    assert _is_open(panel) is policy.is_original
    for words in (policy.title, policy.hint, policy.header, policy.kind.header_usage):
        assert html.escape(words) in panel
    assert panel.count(f'name="mode.{policy.name}"') == len(Mode) + 1
    assert panel.count(f'name="override.{policy.name}"') == bool(policy.header) * len(Override)
    assert (f'name="value.{policy.name}"' in panel) is (policy in WITH_VALUE)
    if policy in WITH_VALUE:
        assert html.escape(policy.kind.value_usage[1:], quote=False) in html.unescape(panel)
        assert f"<code>{policy.kind.example}</code>" in panel


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
async def test_setting_a_policy(console: Console, admin: Visitor, policy: Policy) -> None:
    """A policy that is set by its panel has it open, with its mode and its value; the others stay
    as they are, and so does it once it is unset.
    """
    key, _ = console.store.keys.create("app")
    example = policy.kind.example
    form = Form(key).with_(policy, mode="audit", value=example, override="locked")
    saved = await _save(admin, form)
    assert "Saved." in saved.text
    override = Override.LOCKED if policy.header else None
    assert _set(console, key, policy)[:2] == (Mode.AUDIT, example)
    assert (_set(console, key, policy).override or None) in (override, Override.ANY)
    panel = _panel(saved, policy)
    assert _is_open(panel)
    assert '<span class="chip m2">Audit</span>' in panel.partition("</summary>")[0]
    changed = console.store.keys.get(key.id)
    assert {name for name, one in changed.policies if one.mode} == {policy.name}
    await _save(admin, Form(changed).with_(policy, mode="", value="", override="any"))
    assert console.store.keys.get(key.id).policies == key.policies


async def test_every_policy_at_once(console: Console, admin: Visitor) -> None:
    """One form sets all policies, each to a mode of its own."""
    key, _ = console.store.keys.create("app")
    form = Form(key)
    for number, policy in enumerate(POLICIES):
        form.with_(policy, mode=("off", "audit", "enforce")[number % 3], value=policy.kind.example)
    assert "Saved." in (await _save(admin, form)).text
    for number, policy in enumerate(POLICIES):
        assert _set(console, key, policy).mode == list(Mode)[number % 3]


MISTAKES = [
    *((LIMIT, "enforce", value) for value in ("", "0", "-1", "1.5", "1e3", "5 00", "9" * 30, "x")),
    *((PATTERNS, "audit", value) for value in ("", " , ", "a\x07b", "x" * 257)),
    (PATTERNS, "enforce", ",".join(f"model-{number}" for number in range(10_000))),
    *((RULES, "audit", value) for value in ("", "min=0", "tall", "pattern=(", "max=1,min=2")),
    *((policy, "off", "\x00") for policy in WITH_VALUE),
    *((policy, "sometimes", policy.kind.example) for policy in POLICIES),
]


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "mode", "value"), MISTAKES, ids=lambda one: str(one)[:12])
async def test_a_setting_that_cannot_be(
    console: Console, admin: Visitor, policy: Policy, mode: str, value: str
) -> None:
    """An error stands beside its field, everything typed is still there, and nothing is saved."""
    key, _ = console.store.keys.create("app")
    other = ORIGINAL if policy is not ORIGINAL else LIMIT
    form = Form(key).with_(policy, mode=mode, value=value)
    form.with_(other, mode="enforce", value=other.kind.example)
    answer = await _save(admin, form)
    assert answer.status == 422
    assert "Nothing was saved yet" in answer.text
    panel = _panel(answer, policy)
    assert _is_open(panel)
    part = "mode" if mode == "sometimes" else "value"
    told = re.search(rf'<p class="error" id="e-{part}.{policy.name}">([^<]+\.)</p>', panel)
    assert told, panel[-3000:]
    assert html.escape(value.strip()) in panel
    assert 'value="enforce" checked' in _panel(answer, other)
    assert console.store.keys.get(key.id) == key


async def test_a_value_without_a_mode(console: Console, admin: Visitor) -> None:
    """A value that no mode would use is not dropped silently."""
    key, _ = console.store.keys.create("app")
    answer = await _save(admin, Form(key).with_(LIMIT, mode="", value="500"))
    assert answer.status == 422
    assert "Choose a mode for this value" in _panel(answer, LIMIT)


async def test_several_mistakes(console: Console, admin: Visitor) -> None:
    """Each mistake stands beside its own field."""
    key, _ = console.store.keys.create("app")
    form = Form(key).with_(LIMIT, mode="enforce", value="many").accepting()
    answer = await _save(admin, form.with_(PATTERNS, mode="audit", value=""))
    assert set(re.findall(r'class="error" id="e-([^"]+)"', answer.text)) == {
        "accept",
        f"value.{LIMIT.name}",
        f"value.{PATTERNS.name}",
    }


async def test_a_form_with_few_fields(console: Console, admin: Visitor) -> None:
    """A policy that a form lacks, as a page of an older version may, stays as it is."""
    policies = (*TABLE.with_original(Mode.AUDIT), (LIMIT.name, Setting(Mode.ENFORCE, "500")))
    key, _ = console.store.keys.create("app", policies)
    form = {"etag": key.etag, "name": "chat", "accept": "user"}
    assert "Saved." in (await admin.post(f"/keys/{key.id}", form)).text
    changed = console.store.keys.get(key.id)
    assert (changed.name, changed.policies) == ("chat", key.policies)


async def test_a_long_list(console: Console, admin: Visitor) -> None:
    """A list as long as can be is saved and shown whole."""
    key, _ = console.store.keys.create("app")
    value = ",".join(f"{'m' * 200}-{number}*" for number in range(1000))
    saved = await _save(admin, Form(key).with_(PATTERNS, mode="audit", value=value))
    assert "Saved." in saved.text
    assert _set(console, key, PATTERNS).value == value
    assert value in _panel(saved, PATTERNS)


async def test_two_administrators(console: Console, admin: Visitor) -> None:
    """The second administrator sees both values of each policy that differs, and of no other."""
    key, _ = console.store.keys.create("app")
    form = Form(key).with_(LIMIT, mode="enforce", value="500", override="locked")
    theirs = ((LIMIT.name, Setting(Mode.AUDIT, "900")), (PATTERNS.name, Setting(Mode.OFF, "o1")))
    console.store.keys.update(key.id, {"policies": theirs})
    answer = await _save(admin, form)
    assert answer.status == 409
    table = answer.text.partition("What differs")[2].partition("</table>")[0]
    rows = re.findall(r'scope="row">([^<]+)</th><td><bdi>([^<]+)</bdi></td><td><bdi>([^<]+)', table)
    assert rows == [
        (LIMIT.title, "Audit: 900", "Enforce: 500"),
        (f"{LIMIT.title}: who may override", "Any request", "No request"),
        (PATTERNS.title, "Off: o1", "Server&#39;s default"),
    ]
    assert 'value="500"' in _panel(answer, LIMIT)


def _put(console: Console, key: ApiKey, policies: dict[str, Any]) -> None:
    """Set policies as another version of policyd may have done."""
    engine = sa.create_engine(console.settings.database_url)
    with engine.begin() as connection:
        statement = sa.text("UPDATE api_keys SET policies = :policies WHERE id = :id")
        connection.execute(statement, {"policies": json.dumps(policies), "id": key.id})
    engine.dispose()


async def test_a_policy_that_is_not_known(console: Console, admin: Visitor) -> None:
    """A setting of a policy that this version does not know is shown as such, and kept."""
    key, _ = console.store.keys.create("app")
    _put(console, key, {"<new>": [3, "a&b", None], LIMIT.name: [2, "500", None]})
    key = console.store.keys.get(key.id)
    page = await admin.get(f"/keys/{key.id}")
    shown = page.text.partition('id="unknown-policies"')[2].partition("</table>")[0]
    assert "does not know" in shown
    for words in ("&lt;new&gt;", "a&amp;b", ">Enforce<"):
        assert words in shown
    saved = await _save(admin, Form(key).with_(LIMIT, mode="enforce"))
    assert "Saved." in saved.text
    changed = dict(console.store.keys.get(key.id).policies)
    assert changed["<new>"] == Setting(Mode.ENFORCE, "a&b")
    assert changed[LIMIT.name] == Setting(Mode.ENFORCE, "500")
    assert "&lt;new&gt;: enforce" in (await admin.get("/keys")).text


async def test_a_value_of_another_version(console: Console, admin: Visitor) -> None:
    """A value that another version took, and this one would not, keeps nothing else from being
    saved, and stays until it is changed.
    """
    key, _ = console.store.keys.create("app")
    _put(console, key, {LIMIT.name: [3, "1e9", 3]})
    key = console.store.keys.get(key.id)
    assert (
        "Saved." in (await _save(admin, Form(key).with_(PATTERNS, mode="audit", value="o1"))).text
    )
    key = console.store.keys.get(key.id)
    assert setting_of(key.policies, PATTERNS.name) == Setting(Mode.AUDIT, "o1")
    assert setting_of(key.policies, LIMIT.name) == Setting(Mode.ENFORCE, "1e9", Override.LOCKED)
    assert (await _save(admin, Form(key).with_(LIMIT, mode="audit"))).status == 422


async def test_accepted_places(console: Console, admin: Visitor) -> None:
    """A key accepts places of the body and headers; those that it had before keep their order."""
    key, _ = console.store.keys.create("app", accept=("header:x-b", "user"))
    page = await admin.get(f"/keys/{key.id}")
    assert 'name="accept_headers" value="x-b"' in page.text
    form = Form(key).accepting(*BODY_PLACES, headers=" X-A, header:x-b,x-a ,")
    assert "Saved." in (await _save(admin, form)).text
    rest = [place for place in BODY_PLACES if place != "user"]
    assert console.store.keys.get(key.id).accept == ("header:x-b", "user", *rest, "header:x-a")


@pytest.mark.parametrize("headers", ["x y", "x_y", "ü", "<b>", "a" * 65, "a,b,c,d,e,f,g,h", "\x00"])
async def test_headers_that_cannot_be(console: Console, admin: Visitor, headers: str) -> None:
    """An error in a header stands beside its field."""
    key, _ = console.store.keys.create("app")
    answer = await _save(admin, Form(key).accepting("user", headers=headers))
    assert answer.status == 422
    assert 'class="error" id="e-accept"' in answer.text
    assert f'name="accept_headers" value="{html.escape(headers)}"' in answer.text
    assert console.store.keys.get(key.id) == key


@pytest.mark.parametrize(
    ("accept", "instead", "none"),
    [
        (("user", "safety_identifier"), "", ""),
        (("header:x-user",), "", ""),
        (("user",), "", "decision"),
        (("safety_identifier",), "completion", ""),
        (("user_security_context.end_user_id",), "embedding", "live session"),
    ],
)
async def test_requests_without_a_place(
    console: Console, admin: Visitor, accept: tuple[str, ...], instead: str, none: str
) -> None:
    """Save warns of requests that have no place for the accepted identifiers."""
    key, _ = console.store.keys.create("app")
    body = [place for place in accept if place in BODY_PLACES]
    headers = ",".join(place.removeprefix("header:") for place in accept if place not in body)
    saved = await _save(admin, Form(key).accepting(*body, headers=headers))
    assert "Saved." in saved.text
    warning = saved.text.partition('id="without-place"')[2].partition("</div></div>")[0]
    by_user, _, by_none = warning.partition("no user can be named")
    assert instead in by_user
    assert none in by_none
    assert bool(warning) is bool(instead or none)


async def test_the_list_of_keys(console: Console, admin: Visitor) -> None:
    """The list shows which policies a key sets, with their modes."""
    modes = dict(zip(POLICIES, (Mode.OFF, Mode.AUDIT, Mode.ENFORCE) * 9, strict=False))
    policies = tuple((one.name, Setting(mode, one.kind.example)) for one, mode in modes.items())
    console.store.keys.create("app", policies)
    text = (await admin.get("/keys")).text
    for policy, mode in modes.items():
        word = labels.MODES[mode][0]
        shown = word if policy is ORIGINAL else f"{policy.title}: {word.lower()}"
        assert f'<span class="chip m{mode.value}">{shown}</span>' in text
    console.store.keys.create("other")
    assert (await admin.get("/keys")).text.count(f"{LIMIT.title}: ") == 1


def _results(*found: tuple[Policy | str, Mode, str, Ignored, str | None]) -> str:
    """What policies found, as the log has it."""
    return json.dumps(
        [
            [one if isinstance(one, str) else one.name, mode, value, Source.KEY, ignored, message]
            for one, mode, value, ignored, message in found
        ]
    )


TWO_FLAGS: dict[str, Any] = {
    "flags": f"{LIMIT.flag},{ORIGINAL.flag}",
    "results": _results(
        (LIMIT, Mode.AUDIT, "500", Ignored.LOCKED, "max tokens of: <500>"),
        (ORIGINAL, Mode.ENFORCE, "", Ignored.NOT_IGNORED, ORIGINAL.description),
        (PATTERNS, Mode.ENFORCE, "gpt-4*,o1", Ignored.NOT_IGNORED, None),
        ("new_one", Mode.AUDIT, "7", Ignored.NOT_IGNORED, None),
    ),
    "token_limit": 1234,
    "prompt_chars": 56789,
}


async def test_a_request_with_two_flags(console: Console, admin: Visitor) -> None:
    """Each flag has an icon with its own explanation: which policy blocked, and which watched."""
    one = denied(utc_now(), **TWO_FLAGS)
    console.store.log.append([one])
    for path in ("/logs", f"/logs/{one.id}"):
        text = (await admin.get(path)).text
        assert text.count('class="flag blocked"') == 2
        assert f'aria-label="Flag: {LIMIT.title}"' in text
        assert f"{LIMIT.tooltip}. {LIMIT.title} only watched: another policy blocked" in text
        assert f"{ORIGINAL.tooltip}. It was blocked, as {ORIGINAL.title} is enforced." in text


async def test_results(console: Console, admin: Visitor) -> None:
    """Log Details shows what each policy found: mode, value, source, override, violation."""
    one = denied(utc_now(), **TWO_FLAGS)
    console.store.log.append([one])
    text = (await admin.get(f"/logs/{one.id}")).text
    table = text.partition('class="plain results"')[2].partition("</table>")[0]
    rows = [re.sub(r"<[^>]*>", "|", row) for row in table.split("</tr>")[1:-1]]
    cells = [[cell for cell in row.split("|") if cell.strip()] for row in rows]
    key, dash = "The API key", labels.UNKNOWN
    assert cells == [
        [
            LIMIT.title,
            "Audit",
            "500",
            key,
            "Yes, as the setting is locked",
            "max tokens of: &lt;500&gt;",
        ],
        [ORIGINAL.title, "Enforce", dash, key, "No", ORIGINAL.description],
        [PATTERNS.title, "Enforce", "gpt-4*,o1", key, "No", "None"],
        ["new_one", "Audit", "7", key, "No", "None"],
    ]
    assert "<dt>Token limit</dt><dd><bdi>1,234</bdi></dd>" in text
    assert "<dt>Prompt characters</dt><dd><bdi>56,789</bdi></dd>" in text


@pytest.mark.parametrize(
    ("number", "shown"), [(ABSENT, "Not given"), (INVALID, "Not a number"), (0, "0")]
)
async def test_numbers(console: Console, admin: Visitor, number: int, shown: str) -> None:
    """The console distinguishes a number that is absent, or not valid, from 0."""
    one = record(utc_now(), token_limit=number)
    console.store.log.append([one])
    text = (await admin.get(f"/logs/{one.id}")).text
    assert f"<dt>Token limit</dt><dd><bdi>{shown}</bdi></dd>" in text
    assert f'<dt>Prompt characters</dt><dd><span class="muted">{labels.UNKNOWN}</span>' in text


async def test_results_of_the_original_policy_alone(console: Console, admin: Visitor) -> None:
    """A decision of the original policy alone, as older versions log all, has the same table."""
    one = denied(utc_now(), mode=Mode.ENFORCE, source=Source.DEFAULT)
    console.store.log.append([one])
    text = (await admin.get(f"/logs/{one.id}")).text
    table = text.partition('class="plain results"')[2].partition("</table>")[0]
    for words in (ORIGINAL.title, ">Enforce<", "The server", ORIGINAL.description):
        assert words in table


def _explained() -> Iterator[tuple[dict[str, Any], str]]:
    for policy in POLICIES:
        if policy is ORIGINAL:
            continue
        violated = _results(
            (policy, Mode.AUDIT, policy.kind.example, Ignored.NOT_IGNORED, "violated"),
            (ORIGINAL, Mode.OFF, "", Ignored.NOT_IGNORED, None),
        )
        watched = {"flags": policy.flag, "results": violated, "verdict": Verdict.WOULD_DENY}
        yield watched, f"{policy.tooltip}. It passed, as {policy.title} only watched"
        blocked = {"flags": policy.flag, "results": violated.replace(" 2,", " 3,", 1)}
        yield blocked, f"{policy.tooltip}. It was blocked, as {policy.title} is enforced"
    for policy in WITH_HEADER:
        ignored = _results((policy, Mode.OFF, "", Ignored.INVALID, None))
        header = {"flags": INVALID_OVERRIDE, "results": ignored}
        yield header, f"The header {policy.header} was n"
    yield {"flags": "policy_of_tomorrow"}, "does not know the policy that set this flag"


@pytest.mark.parametrize(("given", "words"), list(_explained()), ids=lambda one: str(one)[:40])
async def test_explanations(
    console: Console, admin: Visitor, given: dict[str, Any], words: str
) -> None:
    """The tooltip of each flag explains it in the policy's own words."""
    console.store.log.append([denied(utc_now(), **given)])
    assert html.escape(words) in (await admin.get("/logs")).text


async def test_flags_that_repeat(console: Console, admin: Visitor) -> None:
    """Two headers that are not valid are one flag, whose tooltip names both."""
    first, second = WITH_HEADER[:2]
    results = _results(
        *((policy, Mode.OFF, "", Ignored.INVALID, None) for policy in (first, second))
    )
    flags = f"{INVALID_OVERRIDE},{INVALID_OVERRIDE}"
    console.store.log.append([record(utc_now(), flags=flags, results=results)])
    text = (await admin.get("/logs")).text
    assert text.count('class="flag"') == 1
    assert first.header in text
    assert second.header in text


def _by_policy(policy: Policy) -> Record:
    results = _results(
        (policy, Mode.ENFORCE, policy.kind.example, Ignored.NOT_IGNORED, "violated"),
        *([] if policy is ORIGINAL else [(ORIGINAL, Mode.OFF, "", Ignored.NOT_IGNORED, None)]),
    )
    return denied(utc_now(), model=f"by-{policy.name}", flags=policy.flag, results=results)


@pytest.mark.parametrize("name", ["policy", "flag"])
async def test_filters(console: Console, admin: Visitor, name: str) -> None:
    """The log is filtered by policy and by flag; the form offers all there are."""
    console.store.log.append([_by_policy(policy) for policy in POLICIES])
    page = (await admin.get("/logs")).text
    options = page.partition(f'<select id="f-{name}"')[2].partition("</select>")[0]
    for policy in POLICIES:
        wanted = policy.name if name == "policy" else policy.flag
        assert f'<option value="{wanted}">{policy.title}</option>' in options
        text = (await admin.get(f"/logs?{name}={quote(wanted)}")).text
        shown = {one.name for one in POLICIES if f"<bdi>by-{one.name}</bdi>" in text}
        assert shown == {policy.name}
        assert f'<option value="{wanted}" selected>' in text
    unknown = await admin.get(f"/logs?{name}=nothing")
    assert unknown.status == 400
    assert "Choose one of" in unknown.text


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
async def test_before_you_switch_it_on(console: Console, admin: Visitor, policy: Policy) -> None:
    """Each panel has the simulation of its policy, by the saved value or by what is typed."""
    setting = Setting(Mode.AUDIT, policy.kind.example)
    key, _ = console.store.keys.create("app", ((policy.name, setting),))
    path = f"/keys/{key.id}/simulation?policy={policy.name}"
    assert f'href="{path}"' in _panel(await admin.get(f"/keys/{key.id}"), policy)
    page = await admin.get(path)
    assert policy.title in page.text
    assert "No requests with this key in this period" in page.text
    typed = await admin.post(path, Form(key).fields, HX_Request="true")
    assert "No requests with this key in this period" in typed.text
    assert "<html" not in typed.text


@pytest.mark.parametrize("policy", WITH_VALUE, ids=name_of)
async def test_nothing_to_simulate(console: Console, admin: Visitor, policy: Policy) -> None:
    """Without a value, or with one that cannot be, the panel says what it needs."""
    key, _ = console.store.keys.create("app")
    path = f"/keys/{key.id}/simulation?policy={policy.name}"
    assert "Give the policy a value first." in (await admin.get(path)).text
    typed = await admin.post(path, Form(key).with_(policy, value="\x01").fields)
    assert typed.status == 200
    assert "There is nothing to look for yet" in typed.text


async def test_a_simulation_of_nothing(console: Console, admin: Visitor) -> None:
    """A policy that does not exist has no simulation."""
    key, _ = console.store.keys.create("app")
    assert (await admin.get(f"/keys/{key.id}/simulation?policy=nothing")).status == 404


async def test_a_simulation_of_one_policy(console: Console, admin: Visitor) -> None:
    """Only what the panel's own policy would have blocked counts."""
    key, _ = console.store.keys.create("app", TABLE.with_original(Mode.ENFORCE))
    given: dict[str, Any] = {"key_id": key.id, "token_limit": 400, "prompt_chars": 10}
    large = record(utc_now(), **given | {"token_limit": 900, "model": "large-one"})
    console.store.log.append([large, denied(utc_now(), **given), record(utc_now(), **given)])
    form = Form(key).with_(LIMIT, value="500").fields
    for policy, asked in ((LIMIT, form), (ORIGINAL, Form(key).fields)):
        answer = await admin.post(f"/keys/{key.id}/simulation?policy={policy.name}", asked)
        assert "<strong>1</strong> of 3 requests would have been blocked" in answer.text
        assert ("large-one" in answer.text) is (policy is LIMIT)


async def test_a_simulation_of_what_is_not_known(console: Console, admin: Visitor) -> None:
    """A simulation distinguishes requests whose numbers the log lacks from those within the
    limit."""
    key, _ = console.store.keys.create("app")
    console.store.log.append([record(utc_now(), key_id=key.id) for _ in range(2)])
    path = f"/keys/{key.id}/simulation?policy={LIMIT.name}"
    text = (await admin.post(path, Form(key).with_(LIMIT, value="500").fields)).text
    assert "Of 2 requests the log does not have what this policy looks at" in text
    assert "Every request kept to it" not in text
