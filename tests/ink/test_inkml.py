"""The InkML reader and writer: the dialects it reads, the files it refuses, and that nothing else comes out of it.

`ABM_HF_FUZZ_EXAMPLES=10000` runs the fuzz tests in full; `ABM_HF_CROHME_EVERY=1` reads every CROHME file instead of
a sample.
"""

import io
import os
import socket
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abm_hf.ink.inkml import read_inkml, write_inkml
from abm_hf.ink.strokes import Ink, InkError, InkWarning, Symbol

fuzz = settings(
    max_examples=int(os.environ.get("ABM_HF_FUZZ_EXAMPLES", "300")),
    deadline=20_000,  # milliseconds for one input: a hang fails, a busy machine does not
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
EVERY = int(os.environ.get("ABM_HF_CROHME_EVERY", "40"))

CROHME = """<ink xmlns="http://www.w3.org/2003/InkML">
<traceFormat>
<channel name="X" type="decimal"/>
<channel name="Y" type="decimal"/>
</traceFormat>
<annotation type="UI">2011_F001_E001</annotation>
<annotation type="writer">w7</annotation>
<annotation type="truth">$x_1$</annotation>
<annotationXML type="truth" encoding="Content-MathML">
  <math xmlns='http://www.w3.org/1998/Math/MathML'><mi xml:id="x_1">x</mi></math>
</annotationXML>
<trace id="0">
1 2, 3 4, 5 6
</trace>
<trace id="1">
7.5 8, -9e1 10
</trace>
<trace id="2">11 12</trace>
<traceGroup xml:id="3">
  <annotation type="truth">From ITF</annotation>
  <traceGroup xml:id="4">
    <annotation type="truth">x</annotation>
    <traceView traceDataRef="1"/>
    <traceView traceDataRef="0"/>
    <annotationXML href="x_1"/>
  </traceGroup>
  <traceGroup xml:id="5"><annotation type="truth">1</annotation><traceView traceDataRef="#2"/></traceGroup>
</traceGroup>
</ink>
"""


def ink_with(body: str, head: str = "") -> bytes:
    return f"<ink>{head}<trace id='0'>{body}</trace></ink>".encode()


def points(data: bytes) -> list:
    return [stroke.tolist() for stroke in read_inkml(data).strokes]


# --- what it reads ---


def test_crohme():
    ink = read_inkml(CROHME.encode())
    assert [stroke.tolist() for stroke in ink.strokes] == [[[1, 2], [3, 4], [5, 6]], [[7.5, 8], [-90, 10]], [[11, 12]]]
    assert ink.label == "$x_1$"
    assert ink.annotations == {"UI": "2011_F001_E001", "writer": "w7"}
    assert ink.symbols == (Symbol("x", (1, 0)), Symbol("1", (2,)))


def test_without_namespace_and_with_a_prefix():
    expected = read_inkml(CROHME.encode())
    assert read_inkml(CROHME.replace(' xmlns="http://www.w3.org/2003/InkML"', "").encode()) == expected
    prefixed = CROHME.replace("xmlns=", "xmlns:i=")
    for name in ("ink", "traceFormat", "channel", "annotation", "annotationXML", "traceGroup", "traceView", "trace"):
        for mark in (">", " ", "/"):
            prefixed = prefixed.replace(f"<{name}{mark}", f"<i:{name}{mark}")
        prefixed = prefixed.replace(f"</{name}>", f"</i:{name}>")
    assert "<i:traceGroup" in prefixed
    assert read_inkml(prefixed.encode()) == expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(encoding):
    ink = read_inkml(ink_with("1 2", "<annotation type='truth'>α</annotation>").decode().encode(encoding))
    assert ink.label == "α"


def test_mathwriting():
    ink = read_inkml(b"""<ink xmlns="http://www.w3.org/2003/InkML">
        <annotation type="label">\\frac{a}{b}</annotation>
        <annotation type="normalizedLabel">\\frac{a}{b}n</annotation>
        <annotation type="splitTagOriginal">train</annotation>
        <annotation type="inkCreationMethod">human</annotation>
        <annotation type="sampleId">000aa4c444cba3f2</annotation>
        <traceFormat><channel name="X" type="decimal"/><channel name="Y" type="decimal"/>
        <channel name="T" type="decimal" units="ms"/></traceFormat>
        <trace id="0">10.01 20.5 0.0,11.0 21.0 17.0</trace></ink>""")
    assert ink.strokes[0].tolist() == [[10.01, 20.5, 0], [11, 21, 17]]
    assert ink.label == "\\frac{a}{b}"
    assert ink.annotations == {
        "normalizedLabel": "\\frac{a}{b}n",
        "splitTagOriginal": "train",
        "inkCreationMethod": "human",
        "sampleId": "000aa4c444cba3f2",
    }


@pytest.mark.parametrize(
    ("annotations", "label"),
    [
        ("<annotation type='normalizedLabel'>n</annotation><annotation type='truth'>t</annotation>", "t"),
        ("<annotation type='normalizedLabel'>n</annotation><annotation type='label'>l</annotation>", "l"),
        ("<annotation type='normalizedLabel'>n</annotation>", "n"),
        ("<annotation typx='truth'>t</annotation>", "t"),
        ("<annotation type='truth'> </annotation><annotation type='label'>l</annotation>", "l"),
        ("<annotation type='truth'> a &lt;<!-- c --> b </annotation>", " a < b "),
        ("<annotation type='truth'>first</annotation><annotation type='truth'>second</annotation>", "first"),
        ("<annotation>t</annotation>", None),
        ("<traceGroup><annotation type='truth'>t</annotation></traceGroup>", None),
    ],
)
def test_labels(annotations, label):
    assert read_inkml(ink_with("1 2", annotations)).label == label


def channels(*names: str) -> str:
    return "<traceFormat>" + "".join(f"<channel name='{name}'/>" for name in names) + "</traceFormat>"


@pytest.mark.parametrize(
    ("head", "body", "expected"),
    [
        ("", "1 2 3 4, 5 6 7 8", [[1, 2], [5, 6]]),  # undeclared channels may mean anything
        (channels("X", "Y"), "1 2 3, 4 5 6", [[1, 2], [4, 5]]),
        (channels("T", "y", "X"), "1 2 3, 4 5 6", [[3, 2, 1], [6, 5, 4]]),
        (channels("X", "Y", "F"), "1 2 3", [[1, 2]]),  # force is not time
        (channels("X", "Y", "F", "T"), "1 2 3 4", [[1, 2, 4]]),
        (channels("X", "Y", "T"), "1 2 3, 4 5", [[1, 2], [4, 5]]),  # time is missing
        (channels(), "1 2", [[1, 2]]),
    ],
)
def test_channels(head, body, expected):
    assert points(ink_with(body, head)) == [expected]


def test_time_of_part_of_the_strokes_is_left_out():
    data = f"<ink>{channels('X', 'Y', 'T')}<trace>1 2 3</trace><trace>4 5</trace></ink>"
    assert points(data.encode()) == [[[1, 2]], [[4, 5]]]


def test_traces_without_points_keep_the_segmentation_in_step():
    data = b"""<ink><trace id="a"/><trace id="b"> </trace><trace id="c" type="penUp">9 9</trace>
        <trace id="d">1 2,</trace>
        <traceGroup><traceGroup><annotation type="truth">x</annotation>
        <traceView traceDataRef="a"/><traceView traceDataRef="d"/></traceGroup>
        <traceGroup><annotation type="truth">y</annotation><traceView traceDataRef="b"/></traceGroup>
        </traceGroup></ink>"""
    ink = read_inkml(data)
    assert [stroke.tolist() for stroke in ink.strokes] == [[[1, 2]]]
    assert ink.symbols == (Symbol("x", (0,)),)


def test_sources(tmp_path):
    path = tmp_path / "a.inkml"
    path.write_text(CROHME)
    expected = read_inkml(CROHME.encode())
    with path.open("rb") as file:
        for source in (path, str(path), file, io.BytesIO(CROHME.encode())):
            assert read_inkml(source) == expected
    with path.open() as text, pytest.raises(TypeError, match="binary mode"):
        read_inkml(text)
    with pytest.raises(FileNotFoundError):
        read_inkml(tmp_path / "missing.inkml")


# --- what the recommendation lets a file declare ---


def test_the_recommendations_own_trace():
    """The example of section 3.2.1, with the points of its table."""
    head = """<traceFormat><channel name="X" type="integer"/><channel name="Y" type="integer"/><intermittentChannels>
        <channel name="S1" type="boolean" default="F"/><channel name="S2" type="boolean" default="F"/>
        </intermittentChannels></traceFormat>"""
    body = """1125 18432,'23'43,"7"-8,3-5,7 -3,6 2,6 8,3 6 T,2 4*T,3 6,3-6 F F"""
    x = [1125, 1148, 1178, 1211, 1251, 1297, 1349, 1404, 1461, 1521, 1584]
    y = [18432, 18475, 18510, 18540, 18567, 18596, 18633, 18676, 18723, 18776, 18823]
    assert points(ink_with(body, head)) == [[list(point) for point in zip(x, y, strict=True)]]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("1 2, '3 '4, 5 6", [[1, 2], [4, 6], [9, 12]]),
        ("1 2,'3'4,!5 6", [[1, 2], [4, 6], [5, 12]]),  # each channel has a prefix of its own
        ("1 2,'3'4,* *", [[1, 2], [4, 6], [7, 10]]),
        ("1 2,* -3", [[1, 2], [1, -3]]),
        ("#1F #-2, -#a 3".replace("#-", "-#"), [[31, -2], [-10, 3]]),
        ("1-2.5-3,.5+1", [[1, -2.5], [0.5, 1]]),
        ("1,119 2,119 3,120", [[1, 119], [2, 119], [3, 120]]),  # the separators exchanged, as InkSight's files are
        ("223,42", [[223, 42]]),
    ],
)
def test_short_forms(body, expected):
    assert points(ink_with(body)) == [expected]


def channel(name: str, **attributes: str) -> str:
    return f"<channel name='{name}' " + " ".join(f"{key}='{value}'" for key, value in attributes.items()) + "/>"


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        (channel("X", orientation="+ve") + channel("Y", orientation="-ve"), [[1, -2], [3, -4]]),
        (channel("Y", orientation="-ve") + channel("X"), [[2, -1], [4, -3]]),
        (channel("X", orientation="-ve") + channel("Y"), [[-1, 2], [-3, 4]]),
        (channel("X", units="mm") + channel("Y", units="cm"), [[1, 20], [3, 40]]),
        (channel("X", units="pc") + channel("Y", units="pt"), [[1, 2 / 12], [3, 4 / 12]]),
        (channel("X") + channel("Y", units="m"), [[1, 2000], [3, 4000]]),  # without a unit: mm
        (channel("X", units="dev") + channel("Y", units="dev"), [[1, 2], [3, 4]]),
        (
            "<intermittentChannels>" + channel("F") + "</intermittentChannels>" + channel("X") + channel("Y"),
            [[1, 2], [3, 4]],
        ),
    ],
)
def test_orientation_units_and_order(channels, expected):
    found = points(ink_with("1 2 9, 3 4 9", f"<traceFormat>{channels}</traceFormat>"))
    assert np.allclose(found, [expected], rtol=1e-12)


Y_FIRST = "<traceFormat xml:id='f'><channel name='Y'/><channel name='X'/></traceFormat>"
FLIPPED = """<canvasTransform xml:id='t'><mapping type='affine'><affine>2 0 10, 0 -1 5,</affine></mapping>
</canvasTransform>"""

BOUND = "<bind source='Y'/><bind source='X'/><affine>"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (f"<definitions><context xml:id='c'>{Y_FIRST}</context></definitions>", [2, 1]),
        (f"<definitions>{Y_FIRST}<context xml:id='c' traceFormatRef='#f'/></definitions>", [2, 1]),
        (f"<context xml:id='c'><inkSource xml:id='s'>{Y_FIRST}</inkSource></context>", [2, 1]),
        (f"<inkSource xml:id='s'>{Y_FIRST}</inkSource><context xml:id='c' inkSourceRef='#s'/>", [2, 1]),
        (f"<context xml:id='b'>{Y_FIRST}</context><context xml:id='c' contextRef='#b'/>", [2, 1]),
        (f"<context xml:id='b'>{Y_FIRST}</context><context xml:id='c'/>", [1, 2]),
        (f"<context xml:id='c'>{FLIPPED}</context>", [12, 3]),
        (f"<definitions>{FLIPPED}<context xml:id='c' canvasTransformRef='#t'/></definitions>", [12, 3]),
        (f"<context xml:id='c'>{FLIPPED.replace('<affine>', BOUND)}{Y_FIRST}</context>", [12, 3]),
        (
            f"""<context xml:id='c'>{FLIPPED}<canvas><traceFormat><channel name='X'/>
            <channel name='Y' orientation='-ve'/></traceFormat></canvas></context>""",
            [12, -3],
        ),
        ("<context xml:id='c'><canvasTransform><mapping type='identity'/></canvasTransform></context>", [1, 2]),
    ],
)
def test_contexts_and_canvas(head, expected):
    ink = f"<ink>{head}<traceGroup contextRef='#c'><trace>1 2</trace></traceGroup></ink>"
    assert points(ink.encode()) == [[expected]]


def test_a_stream_changes_its_context():
    first = "<context><traceFormat><channel name='Y'/><channel name='X'/></traceFormat></context>"
    second = "<context><traceFormat><channel name='X'/><channel name='Y' orientation='-ve'/></traceFormat></context>"
    ink = f"<ink>{first}<trace>1 2</trace>{second}<trace>1 2</trace></ink>"
    assert points(ink.encode()) == [[[2, 1]], [[1, -2]]]


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ("<context xml:id='c' traceFormatRef='#none'/>", "<context> refers to '#none', which is not in this file"),
        ("<context xml:id='c' contextRef='#c'/>", "circle"),
        (
            "<context xml:id='c'><canvasTransform><mapping type='mathml'/></canvasTransform></context>",
            "canvasTransform of type 'mathml' is not supported",
        ),
        (
            "<context xml:id='c'><canvasTransform><mapping type='affine'><affine>1 0 0 0, 0 1 0 0</affine></mapping>"
            "</canvasTransform></context>",
            "affine matrix '1 0 0 0, 0 1 0 0' is not supported",
        ),
        (f"<context xml:id='c'>{FLIPPED}{Y_FIRST}</context>", "affine matrix without <bind>"),
        (
            "<context xml:id='c'><traceFormat><channel name='X'><mapping type='lookup'/></channel><channel name='Y'/>"
            "</traceFormat></context>",
            "mapping of X or Y is not supported",
        ),
        (
            "<context xml:id='c'><traceFormat><channel name='X' units='dev'/><channel name='Y' units='cm'/>"
            "</traceFormat></context>",
            "X is in 'dev' and Y in 'cm': their ratio is not known",
        ),
        (
            "<context xml:id='c'><canvasTransform><mapping type='affine'><affine>1e9 0 0, 0 1 0</affine></mapping>"
            "</canvasTransform></context>",
            "on the canvas, too far for a pen",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(head, reason):
    with pytest.raises(InkError, match=reason):
        read_inkml(f"<ink>{head}<trace contextRef='#c'>1 2, 3 4</trace></ink>".encode())


def test_a_continued_trace_is_one_stroke():
    data = b"""<ink><trace xml:id="a" continuation="begin">1 2, 3 4</trace><trace xml:id="b">9 9</trace>
        <trace xml:id="c" continuation="end" priorRef="#a">5 6</trace>
        <traceGroup><annotation type="truth">x</annotation><traceView traceDataRef="#c"/></traceGroup></ink>"""
    ink = read_inkml(data)
    assert [stroke.tolist() for stroke in ink.strokes] == [[[1, 2], [3, 4], [5, 6]], [[9, 9]]]
    assert ink.symbols == (Symbol("x", (0,)),)


@pytest.mark.parametrize(
    ("old", "new", "line", "reason", "kept"),
    [
        ('traceDataRef="0"', 'traceDataRef="9"', 24, "the symbol 'x' names trace '9', which is not there", ["1"]),
        ('<trace id="1">', '<trace id="0">', 23, "the symbol 'x' names trace '1', which is not there", ["1"]),
        ('<trace id="1">', '<trace id="2">', 23, "the symbol 'x' names trace '1', which is not there", []),
    ],
)
def test_ink_outlives_a_wrong_segmentation(tmp_path, old, new, line, reason, kept):
    """A segment that names a missing trace, or one of several with the same id, goes; strokes and label stay."""
    path = tmp_path / "wrong.inkml"
    path.write_text(CROHME.replace(old, new, 1))
    with pytest.warns(InkWarning) as caught:
        ink = read_inkml(path)
    assert (ink.label, len(ink.strokes)) == ("$x_1$", 3)
    assert [symbol.label for symbol in ink.symbols] == kept
    assert str(caught[0].message).startswith(f"{path}:{line}: {reason}")
    assert len(caught) == 2 - len(kept)


# --- what it refuses, and how it says so ---


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ("3 4, 5 6", "3 4, nan 6", 13, "point 2 of trace '0', 'nan 6': 'nan' is not finite"),
        ("3 4, 5 6", "3 4,\n 5\n 1e999", 14, "'1e999' is not finite"),
        ("-9e1 10", "-9e9 10", 16, "point 1 of trace '1', '-9e9 10': '-9e9' is beyond"),
        ("7.5 8,", "7.5,", 16, "point 0 of trace '1', '7.5': 1 values, but at least 2 are needed"),
        ("7.5 8,", "7.5 8,,", 16, "point 1 of trace '1', '': 0 values"),
        ("7.5 8,", "7.5 8x,", 16, "'8x' is not a number"),
        ("7.5 8,", "7.5 8, '1 2x,", 16, "point 1 of trace '1', \"'1 2x\": '2x' is not a number"),
        ("7.5 8,", "* 8,", 15, "trace '1' has a point without X or Y, or too far for a pen"),
        ("7.5 8,", "9e8 8, '9e8 1,", 15, "trace '1' has a point without X or Y, or too far for a pen"),
        ('<trace id="1">', '<trace id="1" contextRef="#c">', 15, "<trace> refers to '#c', which is not in this file"),
        ('name="X"', 'name="Z"', 2, "traceFormat has no X and Y"),
        ("</math>", "</mat>", 10, "not well-formed XML"),
        ("</ink>", "", 30, "not well-formed XML"),
        ("$x_1$", "\0", 8, "not well-formed XML"),
    ],
)
def test_errors_name_file_line_and_reason(tmp_path, old, new, line, reason):
    assert old in CROHME
    path = tmp_path / "bad.inkml"
    path.write_text(CROHME.replace(old, new, 1))
    with pytest.raises(InkError) as caught:
        read_inkml(path)
    assert (caught.value.file, caught.value.line) == (str(path), line)
    assert reason in caught.value.reason
    assert str(caught.value) == f"{path}:{line}: {caught.value.reason}"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not well-formed XML"),
        (b"   ", "not well-formed XML"),
        (b"\x89PNG\r\n", "not well-formed XML"),
        (b"<ink/>", "no trace with a point"),
        (b"<ink><trace>  </trace></ink>", "no trace with a point"),
        (b"<svg><trace>1 2</trace></svg>", "<svg>, not InkML's <ink>"),
        (b"<?xml version='1.0' encoding='nonsense'?><ink/>", "XML"),
        ("<ink><annotation type='truth'>é</annotation></ink>".encode("latin-1"), "not well-formed XML"),
        (b"<ink>" + b"<g>" * 5000 + b"</g>" * 5000 + b"</ink>", "not well-formed XML"),
    ],
)
def test_other_files_are_refused(data, reason):
    with pytest.raises(InkError, match=reason):
        read_inkml(data)


def test_large_files_are_refused(tmp_path):
    path = tmp_path / "large.inkml"
    path.write_text(CROHME)
    assert read_inkml(path, max_bytes=len(CROHME)) == read_inkml(CROHME.encode())
    for source in (path, CROHME.encode(), io.BytesIO(CROHME.encode())):
        with pytest.raises(InkError, match="more than 99 bytes"):
            read_inkml(source, max_bytes=99)


BOMB = """<?xml version="1.0"?>
<!DOCTYPE ink [<!ENTITY a "1 2, "><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">
<!ENTITY d "&c;&c;&c;&c;&c;&c;&c;&c;"><!ENTITY e "&d;&d;&d;&d;&d;&d;&d;&d;"><!ENTITY f "&e;&e;&e;&e;&e;&e;&e;&e;">]>
<ink><trace>&f;&f;&f;&f; 1 2</trace></ink>"""


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the reader went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be", "utf-32"])
def test_entity_bombs_are_refused(encoding):
    with pytest.raises(InkError, match="DOCTYPE"):
        read_inkml(BOMB.encode(encoding))


def test_external_entities_are_refused(tmp_path, no_network):
    secret = tmp_path / "secret"
    secret.write_text("42 42")
    for declaration in (
        f"<!DOCTYPE ink [<!ENTITY x SYSTEM '{secret.as_uri()}'>]>",
        "<!DOCTYPE ink [<!ENTITY x SYSTEM 'http://127.0.0.1:9/x'>]>",
        "<!DOCTYPE ink [<!ENTITY % p SYSTEM 'http://127.0.0.1:9/x.dtd'> %p;]>",
        "<!DOCTYPE ink SYSTEM 'http://127.0.0.1:9/ink.dtd'>",
        "<!DOCTYPE ink>",
    ):
        with pytest.raises(InkError, match="DOCTYPE"):
            read_inkml(f"{declaration}<ink><trace>&x;</trace></ink>".encode())


def test_an_encoding_that_hides_the_declaration_does_not_help(tmp_path, no_network):
    """In UTF-7 a file can declare a document type without having those characters in a row."""
    secret = tmp_path / "secret"
    secret.write_text("42 42")
    theft = f"<!DOCTYPE ink [<!ENTITY x SYSTEM '{secret.as_uri()}'>]><ink><trace>1 2, &x;</trace></ink>"
    for text, reason in ((theft, "document type declaration is refused"), (BOMB.partition("?>")[2], "amplification")):
        data = b"<?xml version='1.0' encoding='UTF-7'?>" + text.replace("<!", "+ADwAIQ-").encode()
        assert b"<!" not in data
        with pytest.raises(InkError, match=reason):
            read_inkml(data)


# --- writing ---

texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="￾￿"), max_size=8)
names = st.text(string.ascii_letters, min_size=1, max_size=6).filter(
    lambda name: name not in ("truth", "label", "normalizedLabel")
)
numbers = st.floats(-1e9, 1e9)


@st.composite
def inks(draw: st.DrawFn) -> Ink:
    columns = draw(st.sampled_from([2, 3]))
    point = st.lists(numbers, min_size=columns, max_size=columns)
    strokes = draw(st.lists(st.lists(point, min_size=1, max_size=4), min_size=1, max_size=4))
    index = st.integers(0, len(strokes) - 1)
    symbol = st.builds(Symbol, texts, st.lists(index, min_size=1, max_size=3).map(tuple))
    return Ink(
        tuple(strokes),
        label=draw(st.none() | texts),
        symbols=tuple(draw(st.lists(symbol, max_size=3))),
        annotations=draw(st.dictionaries(names, texts, max_size=3)),
    )


@fuzz
@given(inks())
def test_what_is_written_is_read_back_equal(ink):
    file = io.BytesIO()
    write_inkml(ink, file)
    assert read_inkml(file.getvalue()) == ink


def test_write_to_a_path(tmp_path):
    ink = read_inkml(CROHME.encode())
    write_inkml(ink, tmp_path / "a.inkml")
    assert read_inkml(str(tmp_path / "a.inkml")) == ink


@pytest.mark.parametrize(
    "ink",
    [
        Ink(([[1, 2]],), label="\0"),
        Ink(([[1, 2]],), annotations={"truth": "x"}),
        Ink(([[1, 2]],), label="x", annotations={"truth": "x"}),
        Ink(([[1, 2]],), annotations={"label": "x"}),
    ],
)
def test_ink_that_would_not_survive_is_not_written(ink, tmp_path):
    with pytest.raises(InkError):
        write_inkml(ink, tmp_path / "a.inkml")
    assert not (tmp_path / "a.inkml").exists()


# --- fuzzing ---


def read_or_refuse(data: bytes) -> None:
    """Anything but an ink or the documented error fails the test."""
    try:
        ink = read_inkml(data)
    except InkError as error:
        assert error.reason
    else:
        assert all(np.isfinite(stroke).all() for stroke in ink.strokes)


PIECES = """<ink> </ink> <trace/> <trace~id='1'> </trace> 1~2 , ~ nan -1e400 1_0 x ٣ &#0; &amp; &x; <!-- --> <?p?>
<traceFormat> </traceFormat> <channel~name='X'/> <channel~name='Y'/> <channel~name='T'/> <annotation~type='truth'>
</annotation> <traceGroup> </traceGroup> <traceView/> <traceView~traceDataRef='1'/> <![CDATA[ ]]> <!DOCTYPE~ink~[
<!ENTITY~x~'y'> ]> <?xml~version='1.0'~encoding='utf-16'?>"""
pieces = st.sampled_from([b"\0", *(piece.replace("~", " ").encode() for piece in PIECES.split())])


@fuzz
@given(st.binary(max_size=200) | st.lists(pieces, max_size=30).map(b"".join))
def test_fuzz_fragments(data):
    read_or_refuse(data)
    read_or_refuse(b"<ink><trace id='1'>1 2</trace>" + data + b"</ink>")
    read_or_refuse(b"<ink><trace id='1'>1 2, " + data + b"</trace></ink>")


@fuzz
@given(st.data())
def test_fuzz_mutations(data):
    content = bytearray(CROHME.encode())
    for _ in range(data.draw(st.integers(1, 5))):
        start = data.draw(st.integers(0, len(content)))
        length = data.draw(st.integers(0, 30))
        content[start : start + length] = data.draw(st.binary(max_size=6) | pieces | st.just(bytes(content[:length])))
    read_or_refuse(bytes(content))


# --- CROHME ---


def test_crohme_reads(crohme_inkml):
    """Everything reads and survives writing, except one file that is not UTF-8 and one that is empty."""
    broken = {"MfrDB0104.inkml": 15, "MfrDB3088.inkml": 1}
    files = sorted(crohme_inkml.rglob("*.inkml"))
    assert len(files) == 8836 + 671 + 986
    for path in files[::EVERY]:
        if path.name not in broken:
            ink = read_inkml(path)
            assert ink.label and ink.symbols, path
            file = io.BytesIO()
            write_inkml(ink, file)
            assert read_inkml(file.getvalue()) == ink, path
    for path in files:
        if path.name in broken:
            with pytest.raises(InkError) as caught:
                read_inkml(path)
            assert (Path(caught.value.file).name, caught.value.line) == (path.name, broken[path.name])


def test_crohme_misspelt_attribute(crohme_inkml):
    assert "typx" in (crohme_inkml / "test2013" / "rit_4295_2.inkml").read_text()
    assert read_inkml(crohme_inkml / "test2013" / "rit_4295_2.inkml").label
