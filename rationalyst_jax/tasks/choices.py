r"""Answers that are one of a question's options, as models state them: "The answer is (C).", "\boxed{C}".

The answer is the letter of an option of that very row, or there is none: nothing is guessed. An option is
named by its letter or by its exact text. A capital alone is a letter, even where it is also an option's text.

Every quantifier is bounded or possessive (`*+`), so reading takes time linear in the text.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from string import ascii_uppercase

from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.solution import braced, solution

NOTHING = ""  # named by an answer that is no option of the row, or is several
NEAR = 300  # characters around an option that are looked at

# ---- Markup ----

COMMAND = r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|operatorname)"
OPENED = rf"(?:[*_$]{{1,3}}|[\"'“‘`]|{COMMAND}\s?\{{)"
CLOSED = r"(?:[*_$]{1,3}|[\"'”’`]|\})"
# Ways of writing that have a plainer one, applied in this order to texts and to options.
PLAINER = (
    (re.compile(r"\\[()\[\],;:! ]"), ""),  # math brackets and spaces of LaTeX
    (re.compile(rf"(?<!\w){OPENED}\s?([A-Z])[.)]?{CLOSED}(?!\w)"), r"(\1)"),
    (re.compile(rf"{COMMAND}(?![A-Za-z])"), ""),
    (re.compile(r"[*_$`\"“”‘]|(?<!\w)['’]|['’](?!\w)"), ""),
    (re.compile("’"), "'"),
    (re.compile("[−–﹣－]"), "-"),  # minus sign, en dash, small and full-width hyphen
    (re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))"), ""),
    (re.compile(r"\s++"), lambda blank: "\n" if "\n" in blank[0] else " "),
)
BRACES = str.maketrans("", "", "{}")

# ---- Options ----

REASON = r"(?:as|because|but|given\sthat|here|instead\sof|not|rather\sthan|since|so|whereas|which|while)\b"
ARTICLE = re.compile(r"(?:[Tt]he|[Aa]n|a)\s(?=\S)")
# A letter in brackets or a capital; no part of a word, a name ("I'm", "C-section", "D.C.") or a formula.
NO_NAME = r"(?![\w=+#%°^']|\s=|-\w|\.\w\b)"
OPTION = re.compile(
    r"(?P<noun>(?i:(?:the\s)?(?:answer|choice|letter|option)\s))?+"
    r"(?:[(\[]\s?(?P<bracketed>[A-Za-z])\s?[)\]]|(?P<half>[A-Za-z])\)|[(\[]?(?P<bare>[A-Z]))" + NO_NAME
)
# The letter of an option behind its text: "mall (C)", "mall, option C", "mall, which is option C", "mall, C."
BEHIND = re.compile(
    r"\s?[(\[]([A-Z])[)\]]|,\s([A-Z])(?=[.;!\n]|$)"
    rf"|,?\s(?:which\sis\s)?[(\[]?(?i:(?:the\s)?(?:answer|choice|letter|option))\s[(\[]?([A-Z]){NO_NAME}[)\]]?"
)
# Where an option's text ends: not at the point of "3.7".
END = re.compile(
    r"[\s)\]]*+(?:$|[.!?;]++(?![^\s)\]]))|:(?=\s|$)|\s?—|\s\(|\s-\s(?![0-9])|\n"
    rf"|,?\s{REASON}|(?=,){BEHIND.pattern}"
)
# What may follow a capital alone: "A matter of taste" and "I think" name no option.
ALONE = re.compile(
    rf"{END.pattern}|[.:,)\]/]|\s[-&]\s|\s(?:by|for|from|in|and\snot)\b|\s[✓✔✅]|\s(?:and|or)\s[(\[]?[A-Z]\b(?!\s\w)"
)
SEPARATOR = re.compile(r"(?:[ .:,)\]—]|-(?=\s)){0,6}+")
JOINED = re.compile(
    r"(?:\s?[,/&;]|\s(?:and|or|nor)\b)(?:[\s,/&]|\b(?:also|and|maybe|or|perhaps|possibly)\b)*+"
)
ANOTHER = re.compile(r"\b(?:and|or)\s(?:(?:the\s)?(?:choice|option)\s)?\(([A-Z])\)")
CLAUSE = re.compile(rf"[.;!?](?=\s|$)|\n|\b{REASON}")
QUESTION = re.compile(r"[\s)\]]*+\?")
SEVERAL = re.compile(
    r"(?:all|any|both|either|neither|none)\b(?:\sof)?(?:\s\(?[A-Z]\b|\s(?:the\sabove|these|them)\b|[.!]|$)",
    re.IGNORECASE,
)
NOT = re.compile(r"not\s", re.IGNORECASE)
RATHER = re.compile(r"\b(?:but|it\sis|it's)\s(?:rather\s)?")

# ---- Statements ----

ADVERB = "(?:actually|also|clearly|definitely|exactly|hence|indeed|just|likely(?:\\sto\\sbe)?|most|now|" + (
    "obviously|only|probably|simply|still|then|therefore|thus)"
)
FILLER = re.compile(rf"(?:[\s:,]|\b{ADVERB}\b(?!-))*+", re.IGNORECASE)
GOOD = "(?:appropriate|best|correct|final|likely|logical|plausible|right|suitable)"
THING = "(?:answer|choice|completion|continuation|ending|letter|one|option|selection)"
BE = rf"(?:is|was|remains|(?:appears|seems)\sto\sbe|(?:must|should|would|will|has\sto)\s(?:{ADVERB}\s)?be)"
NEVER = r"(?:(?:isn|wasn|aren)'t|(?:cannot|can't|can\snot)\sbe)"
STATEMENT = re.compile(
    rf"""(?P<hashes>\#\#\#\#)
      | (?P<boxed>\\f?box(?:ed)?\s?\{{)
      | (?P<heading>\b(?:(?P<final>final\s)?answer|ans|{GOOD}\s{THING})\s?:)
      | (?P<says>\b(?:answer(?:\s(?:choice|letter|option))?|{GOOD}\s{THING})
          (?:\shere|\sto\s(?:the|this)\squestion)?
          (?:\s(?P<never>{NEVER})|\s{BE})\b)
      | (?P<judged>(?<=[\w)\]}}.,])\s(?P<denied>{NEVER}|(?:is|was|are)\snot)?+(?(denied)|(?:{BE}|are))
          (?:\s(?:{ADVERB}|the|our|my)){{0,3}}+
          \s(?:(?P<bad>incorrect|wrong)|best|correct|right|(?:(?<=the\s)|(?<=most\s))(?:answer|{GOOD}\s{THING}))
          (?:\s{THING}s?)?+
          (?=[\s)\]]*+(?:$|[.,;:!—])|\n|\s(?:and|for|to|{REASON})))""",
    re.VERBOSE | re.IGNORECASE,
)
ABOUT = re.compile(r"(?:based|consistent|correct|plausible|reasonable|right|supported|valid|verified)\b")
SUPPOSED = re.compile(
    r"\b(?:assum(?:e|ing)|if|neither|none|suppose|unless|whether)\b[^.;:!?\n]*+$|\b(?:false|incorrect|wrong)\s$",
    re.IGNORECASE,
)
# What may stand before the subject of "C is correct": "Vitamin C is correct" does not name option C.
ALLOWED = (
    r"(?:^|[.,:;!?\n—(/&-]\s?|\b(?i:a|also|an|and|are|be|both|but|choice|hence|is|letter|nor|only|option|or|so"
    r"|that|the|then|therefore|thus)\s)"
)
SUBJECT = re.compile(rf"{ALLOWED}(?:[(\[](?P<bracketed>[A-Za-z])[)\]]|(?P<bare>[A-Z]))[,.:]?$")
BEFORE = re.compile(rf"{ALLOWED}$")
LISTED = re.compile(r"(?:[,/&]|\b(?:and|or|nor))\s?(?:(?:choice|option)\s)?$", re.IGNORECASE)
ALSO = re.compile(rf"\b(?:and|or)\s(?:the\s)?(?:{GOOD}\s)?$", re.IGNORECASE)
BESIDE = re.compile(r"[\s,.&/]*+(?:and|or)?[\s&]*+")

# ---- Mentions ----

MENTION = re.compile(
    rf"""(?P<boxed>\\f?box(?:ed)?\s?\{{)
      | [(\[]\s?(?P<bracketed>[A-Za-z])\s?[)\]]
      | (?<![\w.'-])(?P<half>[A-Za-z])\)
      | (?i:(?<=answer\s)|(?<=choice\s)|(?<=option\s))(?P<noun>[A-Z]){NO_NAME}
      | (?<![\w.'°-])(?P<bare>[B-HJ-Z]){NO_NAME}
      | (?<![\w.'-])(?P<word>[AI])(?=[.:}}](?!\w\b)|\n|$|(?<=\bis\s.),?\s{REASON})""",
    re.VERBOSE,
)

APART = re.compile(r"(?<![\w.+-])")
GOES_ON = re.compile(r"\w|\.[0-9]|[%°]|['-]\w")


def extract(text: str, question: Question) -> str | None:
    r"""The strict reading: the letter of the option that a model states as its answer, or None.

    Statements are "the answer is C", "answer: C", "C is correct", "\boxed{C}", "#### C" on the last line, and
    a last line that is a letter alone. The last one counts, even where it names no option of the row, or
    several; but "the answer is not C" only takes back a C. Where letter and text disagree ("(C) mall", and
    mall is option B) there is no answer. An "Answer:" or "####" that opens a reasoning is no statement, nor
    is a step that only mentions options. `text` is one step or a whole solution; what follows after it
    (`solution`) is not read.
    """
    options = _texts(question.choices)
    text = _plain(solution(text))
    answer = None
    for named, denied in _statements(text, options):
        if not denied:
            answer = named if named in options else None
        elif answer is not None and answer in named:
            answer = None
    return answer


def flexible(text: str, question: Question) -> str | None:
    """The flexible reading: the last option that a solution mentions, by letter or else by text, or None.

    It finds more answers than the strict one, and takes wrong ones for answers: B in "(C), not (B)". "A" and
    "I" are letters only where nothing makes words of them.
    """
    options = _texts(question.choices)
    text = _plain(solution(text))
    last = None
    for mention in MENTION.finditer(text):
        if mention["boxed"]:
            named = _named(_inside(text, mention.end(), options), options)
        else:
            named = mention[mention.lastindex or 0].upper()
        if named in options:
            last = named
    return last or _last_text(text.lower(), options) or extract(text, question)


def correct(answer: str | None, gold: str) -> bool:
    """Whether an extracted letter is the gold one; unanswered is not correct, whatever the gold."""
    return answer is not None and answer == gold.strip()


def _plain(text: str) -> str:
    for pattern, plainer in PLAINER:
        text = pattern.sub(plainer, text)
    return text.strip()


@lru_cache(maxsize=64)
def _texts(choices: tuple[str, ...]) -> Mapping[str, str]:
    """The options' texts by their letters, as they are compared: without markup, article and last point."""
    plain = {
        letter: _plain(text).translate(BRACES).rstrip(". ").lstrip(", ")
        for letter, text in zip(ascii_uppercase, choices, strict=False)
    }
    return {letter: text[_article(text) :] for letter, text in plain.items()}


def _article(text: str) -> int:
    """How many characters of an article a text begins with."""
    article = ARTICLE.match(text)
    return article.end() if article else 0


def _near(options: Mapping[str, str]) -> int:
    """How many characters of a text are looked at for an option."""
    return max(map(len, options.values()), default=0) + NEAR


def _inside(text: str, start: int, options: Mapping[str, str]) -> str:
    return braced(text[start : start + _near(options)])


def _statements(text: str, options: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    """What each statement names: a letter, NOTHING, or letters of which it says that they are no answer."""
    before = None
    previous = NOTHING
    start = 0
    for opening in STATEMENT.finditer(text):
        lead = text[max(start, opening.start() - _near(options)) : opening.start()]
        start = opening.end()
        if SUPPOSED.search(lead[-NEAR:]):
            continue
        if opening["judged"]:
            named = _subject(lead, options)
            denied = bool(opening["denied"] or opening["bad"])
        else:
            named, denied = _stated(opening, text[start : start + _near(options)], text, options)
        if named is None:
            continue
        if not denied and before and _beside(before, opening, lead) and named != previous:
            named = NOTHING
        yield named, denied
        before = None if denied else opening
        previous = named
    option = OPTION.fullmatch(text.rpartition("\n")[2].rstrip(". "))
    if option:
        yield _letter_of(option), False


def _stated(
    opening: re.Match[str], rest: str, text: str, options: Mapping[str, str]
) -> tuple[str | None, bool]:
    """What a statement names, `rest` being what follows its opening, and whether it takes that back.

    None: it is no statement at all.
    """
    if opening["boxed"]:
        return _named(braced(rest), options) or NOTHING, False
    if opening["hashes"] and "\n" in text[opening.end() :].lstrip():
        return None, False
    rest = _begun(rest, options)
    not_it = NOT.match(rest)
    if opening["never"] or (not_it and not _text_at(rest, options)[0]):  # an option may be "not hungry"
        clause = re.split(r"[.;!?](?=\s|$)|\n", rest, maxsplit=1)[0]
        rather = RATHER.search(clause)
        denied = rather is None
        rest = rest[rather.end() if rather else not_it.end() if not_it else 0 :]
    else:
        denied = False
    named = _named(rest, options)
    if named is None and (opening["final"] or (opening["says"] and not ABOUT.match(rest))):
        named = NOTHING
    return named, denied and bool(named)


def _subject(lead: str, options: Mapping[str, str]) -> str | None:
    """The letters of the options of which something is said after `lead`; None where these are no options."""
    lead = lead.translate(BRACES).rstrip()
    for letter, text in options.items():
        before = lead.removesuffix(text).rstrip(" .:,-—") if len(text) > 1 else lead
        if before != lead and (BEFORE.search(lead, 0, len(lead) - len(text)) or SUBJECT.search(before)):
            subject = SUBJECT.search(before)
            return letter if subject is None or _letter_of(subject) == letter else NOTHING
    letters = ""
    while len(letters) <= len(options) and (subject := SUBJECT.search(lead)):
        letters += _letter_of(subject)
        lead = lead[: subject.start("bracketed" if subject["bracketed"] else "bare")].rstrip("([")
        if not (listed := LISTED.search(lead)):
            break
        lead = lead[: listed.start()].rstrip()
    return letters or None


def _beside(before: re.Match[str], opening: re.Match[str], lead: str) -> bool:
    """Whether two statements are one double statement, as in "the answer is A or the answer is B"."""
    if before["boxed"] and opening["boxed"]:
        return bool(BESIDE.fullmatch(lead[len(braced(lead)) + 1 :].translate(BRACES)))
    return not re.search(r"[.;!?\n]", lead) and bool(ALSO.search(lead))


def _begun(rest: str, options: Mapping[str, str]) -> str:
    """A clause without what may stand before the option: "then" is part of "then leaves", if that is one."""
    rest = rest.translate(BRACES).lstrip(":, \n")
    if _text_at(rest, options)[0]:
        return rest
    filler = FILLER.match(rest)
    return rest[filler.end() :] if filler else rest


def _named(rest: str, options: Mapping[str, str]) -> str | None:
    """The letter that a clause begins by naming, of the row or not; NOTHING where it names several options or
    contradicts itself; None where it does not begin with an option."""
    rest = _begun(rest, options)
    letters, end = _text_at(rest, options)
    option = OPTION.match(rest)
    letter = _letter_of(option) if option and _alone(option, rest, options) else None
    if letters and (letter not in options or len(options[letters[0]]) > 1):
        if behind := BEHIND.match(rest, end):
            own = behind[behind.lastindex or 0]
            named = own if own in letters else NOTHING
            after = rest[behind.end() :].lstrip(")]")
        else:
            named = letters if len(letters) == 1 else NOTHING
            after = rest[end:]
    elif option is None or letter is None:
        return NOTHING if SEVERAL.match(rest) else None
    else:
        named = letter
        after = rest[option.end() :]
        text = _text(after, options)
        if text and letter not in text[0]:
            return NOTHING
        after = text[1] if text else after
    return NOTHING if QUESTION.match(after) or _another(after, named, options) else named


def _letter_of(option: re.Match[str]) -> str:
    return next(letter for name, letter in option.groupdict().items() if letter and name != "noun").upper()


def _alone(option: re.Match[str], rest: str, options: Mapping[str, str]) -> bool:
    """Whether a letter is marked up, or what follows it leaves it a letter."""
    if option["bracketed"] or option["half"] or option["noun"] or ALONE.match(rest, option.end()):
        return True
    text = _text(rest[option.end() :], options)
    return text is not None and option["bare"] in text[0]


def _text(after: str, options: Mapping[str, str]) -> tuple[str, str] | None:
    """The letters of the text that stands after a letter, and what follows it."""
    separator = SEPARATOR.match(after)
    for start in range(separator.end() + 1 if separator else 0):  # the point may be that of ".5"
        letters, end = _text_at(after[start:], options)
        if letters:
            return letters, after[start + end :]
    return None


def _text_at(rest: str, options: Mapping[str, str]) -> tuple[str, int]:
    """The letters of the longest option's text that `rest` begins with, and where it ends; else "" and 0."""
    for same in (str, str.lower):  # "Rr" and "rr" may be two options
        for bracket in range(2 if rest[:1] in ("(", "[") else 1):
            start = bracket + _article(rest[bracket:])
            fits = [
                (letter, text)
                for letter, text in options.items()
                if text and same(rest[start : start + len(text)]) == same(text)
                if END.match(rest, start + len(text))
            ]
            if fits:
                longest = max(len(text) for _, text in fits)
                return "".join(letter for letter, text in fits if len(text) == longest), start + longest
    return "", 0


def _another(after: str, letter: str, options: Mapping[str, str]) -> bool:
    """Whether a second option is named, as in "A or B" and "(A) bank and (B) library"."""
    if joined := JOINED.match(after):
        option = OPTION.match(after, joined.end())
        if option and _alone(option, after, options) and _letter_of(option) != letter:
            return True
        letters, _ = _text_at(after[joined.end() :], options)
        if letters and letter not in letters:
            return True
    clause = CLAUSE.split(after, maxsplit=1)[0]
    return any(other != letter for other in ANOTHER.findall(clause))


def _last_text(text: str, options: Mapping[str, str]) -> str | None:
    """The option whose text is mentioned last; None where there is none, or two options have that text."""
    ends = {letter: _last_end(text, option.lower()) for letter, option in options.items()}
    best = max(((end, len(options[letter])) for letter, end in ends.items()), default=(0, 0))
    last = [letter for letter, end in ends.items() if end and (end, len(options[letter])) == best]
    return last[0] if len(last) == 1 else None


def _last_end(text: str, option: str) -> int:
    """Where the last mention of an option's text ends, as words of their own; 0 without."""
    end = len(text)
    while option and (start := text.rfind(option, 0, end)) >= 0:
        if APART.match(text, start) and not GOES_ON.match(text, start + len(option)):
            return start + len(option)
        end = start + len(option) - 1
    return 0
