"""Strings that somewhere else would be evaluated: made here, from the ways in which others were made to."""

from __future__ import annotations

import itertools

#: What would tell that something was evaluated: no string here holds it, and every payload computes it.
PROOF = str(7 * 191 * 1009)
_SUM = "7*191*1009"

_TEMPLATES = (
    "{{{{{}}}}}",
    "{{{{ {} }}}}",
    "${{{}}}",
    "#{{{}}}",
    "<%= {} %>",
    "{{% print({}) %}}",
    "@({})",
    "*{{{}}}",
    "[[{}]]",
    "{{{{INPUT.{}}}}}",
    "{{{{INPUT.q|{}}}}}",
    "{{{{STAGE.x.{}}}}}",
    "{{{{DOC.{}}}}}",
    "{{{{CONTEXT.{}}}}}",
    "{{{{{{{}}}}}}}",
    "`{}`",
    "$({})",
    '<!--#exec cmd="{}"-->',
    "%{{{}}}",
    "~{{{}}}",
)
_EXPRESSIONS = (
    _SUM,
    f"range({_SUM})",
    "self.__class__.__mro__[1].__subclasses__()",
    "''.__class__",
    "config.items()",
    "request.application.__globals__",
    "__import__('os').popen('id').read()",
    "lipsum.__globals__['os']",
    "cycler.__init__.__globals__",
    f"eval('{_SUM}')",
    "INPUT.__class__",
    "STAGE.__dict__",
    "SECRET.admin",
    "secrets.key",
)
_SQL = (
    "' OR '1'='1",
    "'; DROP TABLE namespaces; --",
    '" OR 1=1 --',
    "1; SELECT sqlite_version()",
    "') UNION SELECT key_hash--",
    "x' AND randomblob(1000000000) --",
    "%' OR '%'='",
    "'||(SELECT 1)||'",
    "\\'; --",
    "1 OR pg_sleep(10)",
)
_OPERATORS = (
    '{"$gt": ""}',
    '{"$where": "sleep(1000)"}',
    '{"$ne": null}',
    '{"must": []}',
    '{"__proto__": {"admin": true}}',
    '{"script": "1"}',
    "constructor.prototype",
    "$where",
    "$regex",
    "__proto__",
    "has_id",
    "_s",
    "_s.x",
    "payload[]",
)
_PATHS = (
    "../../../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "....//....//etc/passwd",
    "/proc/self/environ",
    "file:///etc/passwd",
    "\\\\host\\share",
    "C:\\Windows\\win.ini",
    "%00",
    "admin.key",
    "..;/",
    "http://127.0.0.1:1/",
    "gopher://127.0.0.1:1/_x",
)
_FORMATS = (
    "%s%s%s%n",
    "%x" * 40,
    "{0.__class__}",
    "{self.__init__.__globals__}",
    "%(password)s",
    "$HOME",
    "${jndi:ldap://127.0.0.1:1/a}",
    "{}" * 30,
    "%1000000000d",
    "{:>1000000000}",
)
_PATTERNS = (
    "(a+)+$",
    "^(([a-z])+.)+[A-Z]([a-z])+$",
    "(a|aa)+$",
    "(.*)*x",
    "([a-zA-Z]+)*$",
    "(?=a)*",
    "(?R)",
    "\\1",
    "a{1,100000}",
    "(?:a?){60}a{60}",
    "[[:alpha:]",
    "(?P<x>",
    "**",
    "x*" * 50,
)
_UNICODE = (
    "\u202etxt.exe",
    "\u0000",
    "a\u0000b",
    "\ufeff",
    "\uff07 OR 1=1",
    "\u2028alert(1)",
    "e\u0301" * 50,
    "\U0001f4a9" * 20,
    "\u00ad",
    "\ufffe",
    "ⅷ",
    "İ",
    "ß",
    "\ud7ff",
    "\u200b{{\u200bINPUT.q}}",
)
_SCRIPTS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "javascript:alert(1)",
    "<svg/onload=alert(1)>",
    "<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>&e;",
    "\r\nX-Injected: 1",
    "=cmd|' /C calc'!A0",
    "; id",
    "| id",
    "&& id",
)


def strings() -> list[str]:
    """Return all of them, each once, in a fixed order; more than 500."""
    made = [
        template.format(expression) for template, expression in itertools.product(_TEMPLATES, _EXPRESSIONS)
    ]
    plain = [*_SQL, *_OPERATORS, *_PATHS, *_FORMATS, *_PATTERNS, *_UNICODE, *_SCRIPTS]
    # Each also where a string begins or ends well, and doubled.
    dressed = [form for text in plain for form in (text, f"fine {text}", f"{text}{text}")]
    return list(dict.fromkeys([*made, *dressed]))
