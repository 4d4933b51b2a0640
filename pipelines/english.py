"""Captions without a model: the rules by which sources become English sentences (../shared/SOURCES.md, LAION's).

What people publish about a sound is made plain and cut into sentences here. Nothing is invented: a word comes from the
source or from a rule that stands in its datacard.
"""

import html
import re
from collections.abc import Iterator

from pipelines.text import clean, words

AUDIO_SUFFIX = re.compile(r"\.(wav|wave|mp3|ogg|oga|flac|aiff?|m4a|aac|opus|wma|au|caf|w64|webm|mp4)$", re.IGNORECASE)

LONGEST = 20_000  # characters of a text that are looked at: the patterns below are not for books
EAST = "\u3002\uff01\uff1f"  # Chinese and Japanese marks
MARKS = ".!?\u2026" + EAST
CLOSING = "\"'\u201d\u2019)]"
# Where a sentence may end: a mark and a space, a mark and a capital right after it, an eastern mark, a line
END = re.compile(rf"[.!?\u2026]+[{re.escape(CLOSING)}]*(?=[\s<]|$)|(?<=[a-z]{{2}})[.!?](?=[A-Z][a-z])|[{EAST}]+"
                 r"|[ \t]*\n\s*")  # fmt: skip
LAST_WORD = re.compile(r"([^\s(\[\"'\u201c\u2018]*)[.!?\u2026]+$")
SHORT = frozenset(  # abbreviations, whose full stop ends no sentence
    "e.g i.e eg ie mr mrs ms dr prof st mt sr jr vs feat ft approx ca cf resp incl excl esp avg freq rec ext".split()
)
NUMBERED = frozenset("no nr vol pt pts fig ch op ed max min sec ex".split())  # before a number only: words as well
INITIALS = re.compile(r"[A-Z]|[A-Za-z](\.[A-Za-z])+")

BREAK = re.compile(r"<(?:br|hr|/?(?:p|div|li|ul|ol|tr|h[1-6]))\b[^<>]*>", re.IGNORECASE)
TAG = re.compile(r"<!--.*?-->|<(script|style)\b.*?</\1\s*>|</?[a-z][^<>]*>", re.IGNORECASE | re.DOTALL)
ADDRESS = re.compile(
    r"(?:https?://|ftp://|www\.)[^\s<>\"']*[^\s<>\"'.,;:!?)\]]"
    r"|(?<![\w.+-])[\w.+-]++@[\w-]+(?:\.[\w-]+)+"
    r"|(?<![\w.-])(?:[a-z0-9-]++\.)+(?:com|org|net|edu|io|info|co\.uk|de|fr|fm|tv|me)\b(?:/[\w%./?=&#~-]*[\w/])?",
    re.IGNORECASE,
)
DANGLING = re.compile(  # what led to an address that is gone
    r"(?:\b(?:from|at|on|via|by|see|visit|more|info|mail|e-?mail|contact|source|link|website|and|or)\b\W*){1,12}$",
    re.IGNORECASE,
)
EMPTY = re.compile(r"[(\[{]\s*[)\]}]|\s+(?=[.,;:!?](?:\s|$))")

# A sentence in which one of these stands tells of licences, thanks or equipment and not of the sound
PLEAS = (
    r"\bplease,? (?:\w+ ){0,3}?(?:credit|attribut|comment|rat(?:e|ing)|leave|let me|share|donat|visit|check|contact)",
    r"\bcredit(?:s|ing)? (?:me|is|are|would|not|if|appreciated|required|goes to)\b",
    r"\bfree (?:to (?:use|download|share|contact|comment|rate)|for (?:any|all|commercial|personal))\b",
    r"\broyalty[- ]free\b|\bcreative commons\b|\bcc[- ]?(?:by|0)\b|\bpublic domain\b|\bcopyright(?:ed|s)?\b|\xa9",
    r"\blicen[cs]ed? (?:under|as|is)\b|\ball rights reserved\b",
    r"\battribution (?:is )?(?:not )?(?:required|needed|necessary|appreciated)\b",
    r"\bif you (?:use|like|enjoy|want to use|have used) (?:this|it|them|my|these|the sounds?)\b",
    r"^\W*(?:many )?thank(?:s| you) (?:\w+ ){0,2}?for (?:listening|downloading|watching|using)\b",
    r"\blet me know\b|\bsubscribe\b|\bpatreon\b|\bpaypal\b|\bfollow me\b|\bsoundcloud\b|\bbandcamp\b",
    r"\b(?:check out|visit|see) (?:my|our) (?:other|web|page|profile|pack|sounds|channel|youtube)",
    r"\bmore (?:sounds|info|information) (?:at|on|in)\b|^enjoy(?: it| this)?\W*$|^hope (?:you|it|this)\b",
)
VERBS = "recorded|captured|taken|made|edited|mixed|mastered|processed|normali[sz]ed|created"
BRANDS = (
    r"zoom h\w+|h[1-6]n?|tascam|olympus|marantz|sennheiser|r[o\xf8]de|shure|neumann|akg|sony|i?phone|ipad|samsung"
    r"|nokia|microphones?|mics?|recorder|audacity|fl studio|ableton|reaper|logic pro|pro tools|cubase|garageband"
)
# What follows a brand where nothing else is told: other brands, models ("H4n", "MKH 416"), words of the trade
REST = (
    rf"(?>[ ,/&+()-]+(?:{BRANDS}|and|with|plus|an?|my|the|two|at|in (?:stereo|mono)|stereo|mono|handy|pro|live|x|app"
    r"|voice|memos?|internal|external|built-?in|pair|k?hz|bits?|[a-z]{0,8}\d[\w.]{0,12}|(?-i:[A-Z]{2,4}))\b){0,9}+\W*$"
)
GEAR = (  # sentences of nothing else: any other word may be of what was recorded
    r"^(?:mic|microphone|recorder|gear|equipment|software|daw|sample ?rate|bit ?(?:depth|rate)|format)s?\s*:",
    rf"^(?:\w+ )?(?:was |were )?(?:{VERBS}) (?:with|using|on|via|through) "
    rf"(?:(?:an?|my|the|two) )?(?:[\w-]+(?<!ing) ){{0,2}}?(?:{BRANDS})\b{REST}",
    rf"^\W*(?:zoom h\w+|tascam [a-z0-9-]+|olympus [a-z0-9-]+)\b{REST}",
)
BOILERPLATE = re.compile("|".join(PLEAS + GEAR), re.IGNORECASE)
SPOKEN = re.compile(r"[\"\u201c]|\b(?:say|says|saying|said|voice|announce\w*)\b", re.IGNORECASE)  # then it is the sound

# What recorders, phones and hosts call a file that nobody has named
CODE = re.compile(
    r"(?<![^\W_])(?:zoom|dr|img|dsc[nf]?|mvi|mov|vid|aud|rec|ste|st|sr|tr|r0?9|ls|wa|gopr|gx|pict|ptt|trk|h[1-6]n?|hpim|wnr)"
    r"[_-]?\d{2,}(?![^\W\d_])|\b[0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12}\b|\b[0-9a-f]{24,}\b",
    re.IGNORECASE,
)
PHRASE = re.compile(
    r"\bno[ _]?(?:name|title|description)\b|\bn/a\b|\bvoice[ _]?memos?\b|\bneue aufnahme\b|\bnouvel enregistrement\b",
    re.IGNORECASE,
)
OF_PHRASES = frozenset(  # the words that can stand in one
    "no name noname title notitle description nodescription voice memo memos voicememo voicememos neue aufnahme nouvel "
    "enregistrement".split()
)
NOTHING = frozenset(
    "the an my new untitled unnamed unknown noname null nan none title audio sound sounds file files track tracks "
    "sample samples clip clips take takes recording recordings rec memo effect effects sfx fx test copy "
    "img dsc mvi mov vid aud wav mp ogg flac aif aiff".split()
)
WORD = re.compile(r"[^\W\d_]+")
DIGIT = re.compile(r"[0-9]")


def listing(names: list[str]) -> str:
    """ "a", "a and b", "a, b and c"; "" for none."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def sound_of(labels: list[str] | tuple[str, ...]) -> str:
    """LAION's rule for labels: "The sound of A.", "The sounds of A, B and C."; "" without any."""
    names = [unstopped(clean(label.replace("_", " "))) for label in labels]
    names = [name for name in names if words(name)]
    return sentence(f"The sound{'s' if len(names) > 1 else ''} of {listing(names)}") if names else ""


def unstopped(label: str) -> str:
    """A label without the full stop at its end, unless it is an abbreviation's: "Dog." but not "p.a."."""
    bare = label.rstrip(". ")
    return label if "." in bare else bare


def sentence(text: str) -> str:
    """The text as one clean line that ends in exactly one mark; "" for nothing."""
    text = clean(text)
    inner = text.rstrip(CLOSING)
    if inner != text and inner.endswith(tuple(MARKS)):  # the mark stands within quotes
        return text
    bare = text.rstrip(" ,;:" + MARKS)
    marks = text[len(bare) :].strip(" ,;:").replace("\u2026", ".")
    return bare + (marks[:1] or ".") if bare else ""


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text, each a clean line with its own marks; one without a word ("1.") goes with the next.

    "e.g.", "3.5" and "v1.2" end none; a line break ends one, unless a small letter follows.
    """
    text, begin = text[:LONGEST], 0
    for end in END.finditer(text):
        piece = text[begin : end.end()]
        if ends(piece, end[0], text[end.end() :].lstrip()[:1]) and WORD.search(piece):
            yield clean(piece)
            begin = end.end()
    if rest := clean(text[begin:]):
        yield rest


def ends(piece: str, mark: str, follows: str) -> bool:
    """Whether a sentence ends with `piece`, whose end is `mark`, before the character `follows`."""
    if mark[0] in EAST:
        return True
    if follows.islower() or (mark.isspace() and piece.rstrip().endswith((",", ";", ":", "-", "("))):
        return False
    word = LAST_WORD.search(piece)
    if mark != "." or word is None:
        return True
    name = word[1].lower()
    return not (name in SHORT or INITIALS.fullmatch(word[1]) or (name in NUMBERED and follows.isdigit()))


def lines(text: str) -> str:
    """Text with entities resolved and a line break for each HTML tag that makes one; other tags stay."""
    return BREAK.sub("\n", html.unescape(text[:LONGEST]))


def plain(text: str) -> str:
    """Text as one line without HTML, addresses (web, e-mail) and whole sentences of boilerplate.

    A line that ended without a mark gets a full stop if another sentence follows.
    """
    kept = [bare for each in sentences(TAG.sub("", lines(text))) if (bare := without_address(each))]
    return " ".join(
        [*(each if each.endswith(tuple(MARKS + CLOSING)) else sentence(each) for each in kept[:-1]), *kept[-1:]]
    )


def without_address(said: str) -> str:
    """A sentence without addresses and the words that led to them; "" for one of boilerplate."""
    if BOILERPLATE.search(said) and not SPOKEN.search(said):
        return ""
    bare = ADDRESS.sub("", said)
    if bare == said:
        return said
    bare = DANGLING.sub("", clean(EMPTY.sub("", bare))).rstrip(" ,;:-(")
    return bare if words(bare) else ""


def from_title(title: str) -> str:
    """A caption from a sound's title: without its audio extension, "_" to spaces, an unclosed "(" gone, full stop.

    The extension also goes before a ")" at the end, where it would take the bracket with it.
    """
    text = clean(html.unescape(title[:LONGEST]))
    inner = text.rstrip(")]")
    text = (AUDIO_SUFFIX.sub("", inner) + text[len(inner) :]).replace("_", " ")
    for opening, closing in ("()", "[]"):
        while text.count(opening) > text.count(closing):
            text = " ".join(text.rsplit(opening, 1))
    return sentence(text) if words(text) else ""


def meaningful(text: str) -> bool:
    """Whether a caption tells anything of the sound, unlike "01", "untitled" or "New Recording 5".

    One word that is no word for a recording is enough, in any script; single Latin letters are codes.
    """
    bare = CODE.sub(" ", text) if DIGIT.search(text) else text  # most have none, and a code has some
    if any(tells(word[0]) and word[0].lower() not in OF_PHRASES for word in WORD.finditer(bare)):  # nearly always
        return True
    return any(map(tells, WORD.findall(PHRASE.sub(" ", bare))))


def tells(word: str) -> bool:
    """Whether a word, outside of a phrase, tells anything of the sound."""
    return (len(word) > 1 or not word.isascii()) and word.lower() not in NOTHING
