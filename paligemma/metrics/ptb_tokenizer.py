"""Splits captions into the words that CIDEr, BLEU and ROUGE compare.

    "A man's dog (brown) isn't on St. Mark's No. 5 bus..."
    a man 's dog -lrb- brown -rrb- is n't on st. mark 's no. 5 bus

Published scores of captions use the tokens of Stanford's PTBTokenizer 3.4.1, a
Java program, in lower case and without punctuation, as pycocoevalcap calls it.
Another tokenizer changes a score by points; this one gives the same tokens
without Java.

As in that program's lexer, at each position the rule with the longest match
wins, look-ahead included, and of equally long ones the first.
"""

import html
import re
import unicodedata
from collections.abc import Callable

import numpy as np

# Tokens that pycocoevalcap drops. It compares lowercased tokens with them, so
# brackets, written as -lrb-, stay.
# fmt: off
PUNCTUATION = frozenset([
  "''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-",
  ".", "?", "!", ",", ":", "-", "--", "...", ";",
])
# fmt: on


def tokenize(text: str) -> str:
  """Returns the words of a caption in lower case, separated by single spaces.

  A fraction after a number ("1 1/2"), a telephone number and a tag with
  attributes are one word with no-break spaces in it. str.split() splits at
  these, as CIDEr and BLEU do; str.split(" ") does not, as in ROUGE.
  Line breaks are spaces.

  Source: PTBTokenizer 3.4.1 with -preserveLines -lowerCase, and the list of
  punctuation of pycocoevalcap/tokenizer/ptbtokenizer.py. The rules were found
  by running that program. Known differences: there, whether the last word of a
  caption keeps its period may depend on the next caption ("No." before one that
  begins with a number); a line break other than "\\n" splits a caption in two,
  after which all go to the wrong image; letters newer than Unicode 6.1 vanish;
  and a capital sigma at the end of a word with digits becomes a final sigma.
  """
  text = _code_units(text.replace("\n", " ")) + "\n"
  words, start = [], 0
  while start < len(text):
    if plain := _PLAIN.match(text, start):
      words.append(plain[1])
      start = plain.end()
      continue
    longest = len(_SPACES.match(text, start)[0])
    token = None
    for pattern, rewrite in RULES:
      match = pattern.match(text, start)
      if match and match.end() - start > longest:
        longest = match.end() - start
        token, written = match[1], rewrite
    if token:
      words.append(written(token))
      start += len(token)
    else:  # a character that no rule matches is left out
      start += max(longest, 1)
  # Joined and split again, because a token may end with white space.
  words = " ".join(words).lower().rstrip().split(" ")
  units = " ".join(word for word in words if word not in PUNCTUATION)
  return units.encode("utf-16-le", "surrogatepass").decode(
    "utf-16-le", "replace"
  )


def _code_units(text):
  """Returns UTF-16 as Java has it: characters beyond U+FFFF become two."""
  data = text.encode("utf-16-le", "surrogatepass")
  return "".join(map(chr, memoryview(data).cast("H")))


def _of_category(prefix: str) -> str:
  """Returns the ranges within U+0080 to U+FFFF, for the inside of [...]."""
  codes = [
    code
    for code in range(0x80, 0x10000)
    if unicodedata.category(chr(code)).startswith(prefix)
  ]
  ranges = np.split(codes, np.flatnonzero(np.diff(codes) > 1) + 1)
  return "".join(f"{chr(r[0])}-{chr(r[-1])}" for r in ranges)


def _listed(text: str) -> str:
  """Returns the characters of hexadecimal ranges, likewise."""
  pairs = [item.split("-") for item in text.split()]
  return "".join(f"{chr(int(p[0], 16))}-{chr(int(p[-1], 16))}" for p in pairs)


def _any_of(words: str, form: Callable[[str], str]) -> str:
  """Returns a pattern of words; a word comes before its own prefixes."""
  return _either(*map(form, sorted(words.split(), reverse=True)))


def _either(*patterns):
  return "|".join(patterns)


def _in_any_case(word):
  return f"(?i:{re.escape(word)})"


def _capitalized(word):
  return f"{word[0].upper()}(?i:{re.escape(word[1:])})"


def _first_in_any_case(word):
  return f"[{word[0]}{word[0].upper()}]{word[1:]}"


_LETTERS = "a-zA-Z" + _of_category("L")
_DIGITS = "0-9" + _of_category("Nd")
# Accents and vowel signs, which go on with a word. Not those of all scripts.
_MARKS = _listed("""
  2c2-2c5 2d2-2df 2e5-2eb 2ed 2ef-36f 375 378-379 384-385 3f6 483-487 55a-55f
  591-5bd 5bf 5c1-5c2 5c4-5c5 5c7 615-61a 64b-65e 670 6d6-6e4 6e7-6ed 6fd-6fe
  70f 711 730-74c 7a6-7b0 7eb-7f3 900-903 93c 93e-94e 951-955 962-963 981-983
  9bc 9be-9c4 9c7-9c8 9cb-9cd 9d7 9e2-9e3 a01-a03 a3c a3e-a4f a81-a83 abc
  abe-acf b82 bbe-bc2 bc6-bc8 bca-bcd c01-c03 c3e-c56 d3e-d44 d46-d48 e31
  e34-e3a e47-e4e eb1 eb4-ebc ec8-ecd 1885-1886
""")
# Signs that are a token of their own; signs not listed vanish.
_SIGNS = r"!-/:-@\[-`{-~" + _listed("""
  a1 a5-a9 ac ae-b4 b6-b9 bf d7 f7 37e 387 589 5be 5c0 5c3 5c6 5f3-5f4 600-603
  606-60c 614 61b 61e-61f 66a 66d 6d4 700-70d 7f6-7f8 964-965 e3f e4f 1fbd
  2016-2017 201a 201e-2023 2030-2038 203b 203e-2042 2044 2070 2074-207e
  2080-208e 20a4 2100-2101 2103-2106 2108-2109 2114 2116-2118 211e-2123 2125
  2127 2129 212e 213a-213b 2140-2144 214a-214d 214f 2155-215e 2190-2bff
  3001-3002 3012 30fb ff01-ff0f ff1a-ff20 ff3b-ff40 ff5b-ff65 ffe0-ffe1
  ffe5-ffe6
""")

_ENTITY = "&[aeiouAEIOU](?:acute|grave|uml);"
_D = f"[{_DIGITS}]"
_L = f"[{_LETTERS}]"
_LD = f"[{_LETTERS}{_DIGITS}]"
# With marks, the soft hyphen and letters that are written as entities.
_LM = f"(?:[{_LETTERS}{_MARKS}\xad]|{_ENTITY})"
_LMD = f"(?:[{_LETTERS}{_MARKS}\xad{_DIGITS}]|{_ENTITY})"
_SPACE = "[ \t\xa0\u2000-\u200a\u3000\r\n\u2028\u2029\x0b\x0c]"
_BLANK = _SPACE[:-1] + "\x85]"  # what it looks ahead for
_APOSTROPHE = "(?:['\x92\u2019]|&apos;)"
_ANY_APOSTROPHE = "(?:['\x92\u2019`\x91\u2018\u201b]|&apos;)"
_HYPHEN = "[-_\u058a\u2010\u2011]"
_WORD = f"{_LM}{_LMD}*(?:[.!?]{_LM}{_LMD}*)*"
_NUMBER = f"(?:{_D}*(?:[.:,\xad\u066b\u066c]{_D}+)+|{_D}+)"
_THING = (
  f"(?:[dDoOlL]{_ANY_APOSTROPHE}{_LD})?{_LD}+"
  f"(?:{_HYPHEN}(?:[dDoOlL]{_ANY_APOSTROPHE}{_L})?{_LD}+)*"
)
# U.S, where a single letter would do, too, if it stands alone
_ACRONYM = (
  r"(?:(?:Canada|Sino|Korean|EU|Japan|non)-U\.S|U\.S\.-(?:U\.K|U\.S\.S\.R)"
  r"|[A-Za-z](?:\.[A-Za-z])+)"
)
_COMPANY = "[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+"
_HYPHENED = (
  rf"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:{_ACRONYM}\.|[A-Za-z0-9\xad]+))+"
)

_NAME = r"[A-Za-z][A-Za-z0-9_:.\-]*"
_VALUE = "(?:'[^'\r\n]*'|\"[^\"\r\n]*\")"
_TAG = (
  f"<(?:[!?][A-Za-z\\-][^>\r\n]*"
  f"|{_NAME}(?: +(?:{_NAME} *= *{_VALUE}|{_NAME}))* */?|/{_NAME}) *>"
)
# What a path goes on and ends with, and what a name in an address is made of.
_IN_PATH = '[^ \t\n\f\r"<>|()]'
_LAST_IN_PATH = '[^ \t\n\f\r"<>|.!?(){},\\-]'
_PATH = f"/{_IN_PATH}+{_LAST_IN_PATH}"
_IN_URL = '[^ \t\n\f\r"<>|(){}]'
_IN_WWW = '[^ \t\n\f\r"<>|.!?(){},]'
# From the comma to the underscore, capitals and digits among them.
_IN_HOST = "[^ \t\n\f\r\"`'<>|.!?(){},-_$]"
_IN_EMAIL = '[^ \t\n\f\r"<>|(){}\xa0]'
_IN_DOMAIN = '[^ \t\n\f\r"<>|(){}.\xa0]'

# Abbreviations that keep their period. After these a sentence may end, ...
_ENDING = _either(
  _any_of("ark az del ill la mass miss ore pa tex wash", _capitalized),
  _any_of("ppte ppty pte ptes pty ptys", _first_in_any_case),
  _any_of(
    """al ala apr ariz assn aug bancorp bhd bldg blvd bros calif co colo conn
    corp cos ct dak dec ed.d esq est etc ext feb fla fri ga inc ind intl jan jr
    jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla
    penn ph.d plc rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues univ
    va vt wed wis wisc wyo""",
    _in_any_case,
  ),
)
# ... after these it goes on, ...
_LEADING = _either(
  _any_of("mfg mtg", _first_in_any_case),
  _any_of(
    """adj adm adv alex assoc asst atty attys ave brig capt cf cie cmdr col
    comdr cpl dept det dr drs elec ens ft gen gov govs hon insp invt jos lieut
    lt maj messrs mlle mme mr mrs ms msgr mt natl pfc ph pres prof profs pvt rep
    reps rev sen sens sfc sgt spc st ste supt supts treas vs wm""",
    _in_any_case,
  ),
)
# ... and these are abbreviations only before a number.
_NUMBERING = _any_of("art ca fig figs no nos op pp prop", _in_any_case)
# Before these, or a tag, a single letter ends a sentence: the period after it
# is a word of its own.
_SENTENCE_STARTS = _any_of(
  """a about according additionally after an as at but earlier he her here
  however if in it last many more mr. ms. now once one other our she since so
  some such that the their then there these they this we what when while yet
  you""",
  _capitalized,
)
_FILE_ENDINGS = _any_of(
  """bat bmp bz2 c cgi class cpp dll doc docx exe gif gz h htm html jar java
  jpeg jpg mov mp3 pdf php pl png ppt ps py sql tar txt wav x xml zip""",
  _in_any_case,
)

_QUOTES = str.maketrans(
  dict.fromkeys("\x91\u2018\u201b\u2039", "`")
  | dict.fromkeys("\x92\u2019\u203a", "'")
  | dict.fromkeys("\x93\u201c\xab", "``")
  | dict.fromkeys("\x94\u201d\xbb", "''")
)
_BRACKETS = {"(": "lrb", ")": "rrb", "[": "lsb", "]": "rsb"}
_BRACKETS |= {"{": "lcb", "}": "rcb"}
_CURRENCIES = dict.fromkeys("\x80\xa4\u20a0\u20ac", "$")
_CURRENCIES |= {"\xa2": "cents", "\xa3": "#"}


def _word(token):
  return token.replace("\xad", "").translate(_QUOTES) or "-"


def _one_word(token):
  return token.replace(" ", "\xa0")


def _with_parentheses(token):
  return _one_word(token).replace("(", "-lrb-").replace(")", "-rrb-")


def _bracket(token):
  return f"-{_BRACKETS[token]}-"


def _fraction(token):
  return unicodedata.normalize("NFKC", token).replace("\u2044", "/")


def _company(token):
  return token.replace("&amp;", "&")


def _unescaped(token):
  return html.unescape(token.lower())


def _always(written):
  return lambda token: written


def _rule(pattern, written=str):
  """Returns a rule: a pattern, and the function that writes its token.

  Group 1 is the token, the rest of the pattern what must follow. A pattern's
  first match is its longest.
  """
  return re.compile(pattern, re.A), written


RULES = [
  _rule(
    "(?i)(can(?=not)|gon(?=na)|wan(?=na)|got(?=ta)|lem(?=me)|gim(?=me))"
    "(?:not|na|ta|me)"
  ),
  _rule(f"({_TAG})", _one_word),
  _rule(r"(&(?:MD|mdash|ndash);|[\x96\x97\u2013-\u2015])", _always("--")),
  _rule("(?i)(&(?:amp|lt|gt);)", _unescaped),
  _rule("(&(?:HS|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);)"),
  # he|'s, is|n't, and the word itself
  _rule(f"(?i)({_WORD}){_APOSTROPHE}(?:[msd]|re|ve|ll)", _word),
  _rule(rf"([A-Za-z\xad]*[A-MO-Za-mo-z]\xad*)[nN]{_ANY_APOSTROPHE}[tT]", _word),
  _rule(f"({_WORD})", _word),
  # words with an apostrophe, and names such as O'Brien or Ma'am
  _rule(
    f"(?i)({_APOSTROPHE}n{_APOSTROPHE}?|[ldj]{_APOSTROPHE}|dunkin{_APOSTROPHE}"
    f"|somethin{_APOSTROPHE}|ol{_APOSTROPHE}|{_APOSTROPHE}em"
    f"|{_APOSTROPHE}cause|{_APOSTROPHE}till?|cap{_APOSTROPHE}n"
    f"|c{_APOSTROPHE}est|e'er|nor'easter|c'mon|nat'l|li'l|cont'd\\.)"
  ),
  _rule(f"(?i)(y{_APOSTROPHE}){_L}"),
  _rule(f"(?i)({_APOSTROPHE}t)(?:is|was)"),
  _rule(f"([A-HJ-XZn]{_ANY_APOSTROPHE}{_L}{{2,}})"),
  _rule(f"({_L}+[aeiouyAEIOUY]{_ANY_APOSTROPHE}[aeiouA-Z]{_L}*)"),
  # addresses and tags
  _rule(f"(?i)(https?://{_IN_URL}+{_LAST_IN_PATH})"),
  _rule(rf"(www\.(?:{_IN_WWW}+?\.)+?[a-zA-Z]{{2,4}}{_PATH})"),
  _rule(rf"(www\.(?:{_IN_WWW}+\.)+[a-zA-Z]{{2,4}})"),
  _rule(rf"((?:{_IN_HOST}+\.)+(?:com|net|org|edu)(?:{_PATH})?)"),
  _rule(
    rf"((?:&lt;|<)?[a-zA-Z0-9]{_IN_EMAIL}*@(?:{_IN_DOMAIN}+\.)*{_IN_DOMAIN}+"
    "(?:&gt;|>)?)"
  ),
  _rule("(@[A-Za-z_][A-Za-z0-9_]*)"),
  _rule(f"(#{_LM}+)"),
  # 's and n't
  _rule(f"(?i)({_APOSTROPHE}(?:[msd]|re|ve|ll))[^a-z]", _word),
  _rule(f"(?i)(n{_ANY_APOSTROPHE}t)", _word),
  # numbers
  _rule(f"({_D}{{1,2}}[-/]{_D}{{1,2}}[-/]{_D}{{2,4}})"),
  _rule(f"([-+]?{_NUMBER})", _word),
  _rule(
    f"((?:{_D}{{1,4}}[- \xa0])?{_D}{{1,4}}(?:\\\\?/|\u2044){_D}{{1,4}})",
    _one_word,
  ),
  _rule("([\xbc-\xbe\u2153\u2154])", _fraction),
  _rule(
    "([\u207a\u207b\u208a\u208b]?"
    "(?:[\u2070\xb9\xb2\xb3\u2074-\u2079]+|[\u2080-\u2089]+))"
  ),
  _rule(f"({_APOSTROPHE}[0-9][0-9]){_BLANK}"),
  _rule(f"(?i)({_APOSTROPHE}[2-9]0s)"),
  _rule(
    r"((?:\([0-9]{2,3}\)[ \xa0]?"
    r"|(?:\+\+?)?(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0])"
    r"[0-9]{3,4}[- \xa0]?[0-9]{3,5})",
    _with_parentheses,
  ),
  _rule(r"([A-Z]*\$|#)"),
  # words with hyphens, slashes, digits and signs
  _rule(
    r"(-(?:RRB|LRB|RCB|LCB|RSB|LSB)-|C\.D\.s|pro-|anti-|S&(?:amp;)?P-500"
    "|S&(?:amp;)?Ls)"
  ),
  _rule(f"({_THING})"),
  _rule(f"({_COMPANY})", _company),
  _rule(
    r"([A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
    r"(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2})"
  ),
  _rule(r"([Cc]\+\+|[CcFf]#)"),
  # abbreviations
  _rule(rf"([A-Za-z])\.{_BLANK}+(?:{_SENTENCE_STARTS}|{_TAG}){_BLANK}"),
  _rule(rf"((?:{_ENDING})\.)(?:[\s\S]{{2}})?"),
  _rule(f"({_HYPHENED})", _word),
  _rule(rf"((?:{_LEADING})\.)"),
  _rule(rf"((?:{_ACRONYM}|[A-Za-z])\.)"),
  _rule(rf"((?:{_NUMBERING})\.){_BLANK}?{_D}"),
  _rule(
    rf"(?i)({_LMD}+(?:\.{_LMD}+)*\.(?:{_FILE_ENDINGS}))(?:{_BLANK}|[.?!,])"
  ),
  _rule(rf"({_WORD}\.)[,;:\u3001]", _word),
  _rule(rf"({_THING}\.)[,;:\u3001]"),
  _rule(rf"({_COMPANY}\.)[,;:\u3001]", _company),
  _rule(rf"({_HYPHENED}\.)[,;:\u3001]", _word),
  # faces
  _rule(
    r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])[^A-Za-z0-9]", _with_parentheses
  ),
  _rule(
    r"([-'<=>^~x]_[-'<=>^~x]|\([-'<=>^~x][_.]?[-'<=>^~x]\))", _with_parentheses
  ),
  # signs
  _rule(r"([()\[\]{}])", _bracket),
  _rule("(<<|>>)"),
  _rule(r"(\.{3,5}|[\x85\u2026]|\.(?: \.){2,4})", _always("...")),
  _rule("([?!]+)"),
  _rule("(-{3,4})", _always("--")),
  _rule(r"(-+|_+|\*+|#+|@+|(?:\\\*)+)"),
  _rule("('')"),
  _rule(f"(``|[`{''.join(map(chr, _QUOTES))}\u201a\u201e]{{1,2}})", _word),
  _rule("(')[A-Za-z][^ \t\n\r\xa0]", _always("`")),
  _rule(f"(?i)({_APOSTROPHE}(?:[msd]|re|ve|ll))", _word),
  _rule("(?i)(&quot;|&nbsp;|&apos;|[\"'])", _always("''")),
  _rule(f"([{''.join(_CURRENCIES)}])", _CURRENCIES.get),
  _rule(f"([{_SIGNS}])"),
]

_SPACES = re.compile(f"{_SPACE}*")
# What most of a caption is: words of ASCII letters.
_PLAIN = re.compile(
  "(?!(?:cannot|gimme|gonna|gotta|lemme|wanna) )([a-z]+) +(?=[!-~])",
  re.I | re.A,
)
