//! Hostile templates: each fails alone, on a small stack, within its limits.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test they are failures of the test")]

use std::cell::Cell;
use std::thread;

use chrono::NaiveDateTime;
use kaito_jinja::{Data, Error, Limits, Template};
use proptest::prelude::*;

/// Less than any thread of a server has.
const STACK: usize = 1 << 20;

fn render_with(template: &str, limits: Limits) -> Result<String, Error> {
    let message = |role: &str, content: &str| {
        Data::Dict(vec![("role".to_owned(), role.into()), ("content".to_owned(), content.into())])
    };
    let messages = Data::List(vec![message("user", "Hi"), message("assistant", "Yes ")]);
    let template = Template::parse(template)?;
    template.render([("messages", &messages)], NaiveDateTime::default(), limits, &|| false)
}

/// Renders on a thread with a small stack: an overflow would end the test's process.
fn on_small_stack(template: &str) -> Result<String, Error> {
    let template = template.to_owned();
    let run = move || render_with(&template, Limits::default());
    thread::Builder::new().stack_size(STACK).spawn(run).unwrap().join().unwrap()
}

#[test]
fn templates_that_nest_without_end_fail_within_a_megabyte_of_stack() {
    let repeated = |part: &str| part.repeat(100_000);
    let around = |open: &str, inner: &str, close: &str, times: usize| {
        format!("{}{inner}{}", open.repeat(times), close.repeat(times))
    };
    let mut hostile = vec![
        "{% set ns = namespace(s=[]) %}{% for i in range(90000) %}{% set ns.s = [ns.s] %}{% endfor %}ok".to_owned(),
        "{% set ns = namespace(s=1) %}{% for i in range(90000) %}{% set ns.s = {'a': ns.s} %}{% endfor %}ok".to_owned(),
        "{% set ns = namespace(s=1) %}{% for i in range(90000) %}{% set ns.s = (ns.s,) %}{% endfor %}ok".to_owned(),
        "{% set ns = namespace(s=[]) %}{% for i in range(90000) %}{% set ns.s = ns.s|map('list') %}{% endfor %}ok".to_owned(),
        "{% set ns = namespace(s=[]) %}{% for i in range(90000) %}{% set ns.s = ns.s|batch(1) %}{% endfor %}ok".to_owned(),
        "{% set ns = namespace(s=[]) %}{% for i in range(90000) %}{% set ns.s = cycler(ns.s) %}{% endfor %}ok".to_owned(),
        "{% set ns = namespace(s=[]) %}{% for i in range(90000) %}{% set ns.s = joiner(ns.s) %}{% endfor %}ok".to_owned(),
        "{% set ns = namespace(s=[]) %}{% for i in range(90000) %}{% set ns.s = {1: ns.s}.items() %}{% endfor %}ok".to_owned(),
        "{% set ns = namespace(s=[]) %}{% for i in range(90000) %}{% for x in [ns.s] %}{% set ns.s = loop %}{% endfor %}{% endfor %}ok".to_owned(),
        "{% set ns = namespace(s={}) %}{% for i in range(90000) %}{% set ns.s = dict(a=ns.s).get %}{% endfor %}ok".to_owned(),
        "{% set ns = namespace(s=1) %}{% for i in range(900) %}{% set ns.s = namespace(s=ns.s) %}{% endfor %}{{ ns.s }}".to_owned(),
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}".to_owned(),
        "{% macro f(x) %}{% if true %}{% for y in [x] %}{% with z = y %}{{ f([1, f(z)][1]) }}{% endwith %}{% endfor %}{% endif %}{% endmacro %}{{ f(1) }}".to_owned(),
        "{% macro f() %}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}{{ f() }}".to_owned(),
        "{% macro f() %}{% filter upper %}{% set x %}{{ f() }}{% endset %}{% endfilter %}{% endmacro %}{{ f() }}".to_owned(),
        "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}".to_owned(),
        "{% block a %}{{ self.a() }}{% endblock %}".to_owned(),
        "{% macro f(x=f()) %}{% endmacro %}{{ f() }}".to_owned(),
        "{% macro f() %}{{ '{:{}}'.format(1, f()) }}{% endmacro %}{{ f() }}".to_owned(),
    ];
    for part in [
        "(", "[", "{1:", "not ", "-", "+", "a(", "a[", "a|f(", "a.b(", "{{", "{%if 1%}", "1 if ", "a is b(", "1 + (",
        "((1,),",
    ] {
        hostile.push(format!("{{{{ {} }}}}", repeated(part)));
        hostile.push(format!("{{% if {} %}}", repeated(part)));
    }
    for statement in [
        "if 1",
        "for x in [1]",
        "macro m()",
        "call m()",
        "with",
        "filter upper",
        "set x",
        "block b",
        "generation",
        "autoescape 1",
    ] {
        hostile.push(repeated(&format!("{{% {statement} %}}")));
    }
    for chain in [
        ".a",
        "[0]",
        "()",
        "|upper",
        " + 1",
        " ** 1",
        " or 1",
        " and 1",
        " if 1 else 1",
        " ~ 1",
        " == 1",
        "[1:]",
        " is odd",
    ] {
        hostile.push(format!("{{{{ 1{} }}}}", repeated(chain)));
    }
    hostile.push(format!("{{% for {} in x %}}{{% endfor %}}", around("(", "a", ",)", 100_000)));
    hostile.push(format!("{{{{ '{}'.format(1) }}}}", around("{:", "", "}", 50_000)));
    for template in &hostile {
        let start: String = template.chars().take(80).collect();
        match on_small_stack(template) {
            Err(error) => assert!(error.to_string().len() < 400, "{start}: {error}"),
            // A chain of these is no deeper than one, or never runs.
            Ok(_) => assert!(["{{ 1 == 1", "{{ 1 ~ 1"].iter().any(|ok| start.starts_with(ok)), "{start} is rendered"),
        }
    }
}

#[test]
fn the_deepest_templates_that_are_allowed_fit_a_megabyte_of_stack() {
    fn nested(open: &str, inner: &str, close: &str, times: usize) -> String {
        format!("{}{inner}{}", open.repeat(times), close.repeat(times))
    }
    let parentheses = |times| format!("{{{{ {} }}}}", nested("(", "1", ")", times));
    assert_eq!(on_small_stack(&parentheses(25)).as_deref(), Ok("1"));
    // Whatever the limits are, each nesting is tried up to where it is refused.
    type Nesting = Box<dyn Fn(usize) -> String>;
    let nestings: Vec<(&str, Nesting)> = vec![
        ("parentheses", Box::new(parentheses)),
        ("lists", Box::new(move |n| format!("{{{{ {} }}}}", nested("[", "1", "]", n)))),
        ("dictionaries", Box::new(move |n| format!("{{{{ {} }}}}", nested("{1: ", "1", "}", n)))),
        ("not", Box::new(|n| format!("{{{{ {}1 }}}}", "not ".repeat(n)))),
        ("sums", Box::new(|n| format!("{{{{ 1{} }}}}", " + 1".repeat(n)))),
        ("conditions", Box::new(|n| format!("{{{{ {}1 }}}}", "1 if 0 else ".repeat(n)))),
        ("filters", Box::new(|n| format!("{{{{ 1{} }}}}", "|string".repeat(n)))),
        ("calls", Box::new(move |n| format!("{{{{ {} }}}}", nested("dict(a=", "1", ")", n)))),
        ("statements", Box::new(move |n| nested("{% if 1 %}", "1", "{% endif %}", n))),
        ("loops", Box::new(move |n| nested("{% for x in [1] %}", "1", "{% endfor %}", n))),
        ("scopes", Box::new(move |n| nested("{% with %}{% filter upper %}", "1", "{% endfilter %}{% endwith %}", n))),
        (
            "macros",
            Box::new(|n| {
                let body = "{% macro f(n) %}{% if n > 0 %}{{ f(n - 1) }}{% else %}1{% endif %}{% endmacro %}";
                format!("{body}{{{{ f({n}) }}}}")
            }),
        ),
        (
            "values",
            Box::new(|n| {
                let nest = format!("{{% for i in range({n}) %}}{{% set ns.s = [ns.s, {{'a': i}}] %}}{{% endfor %}}");
                format!(
                    "{{% set ns = namespace(s=[]) %}}{nest}{{{{ ns.s }}}}{{{{ ns.s|tojson(indent=1) }}}}{{{{ ns.s == ns.s|list }}}}{{{{ ns.s|pprint }}}}"
                )
            }),
        ),
    ];
    for (name, nesting) in nestings {
        let allowed = (1..2000).find(|n| on_small_stack(&nesting(*n)).is_err()).unwrap_or(2000) - 1;
        // Conversations and their templates nest less than half as deep.
        assert!(allowed >= 18, "{name} may nest {allowed} deep only");
    }
}

#[test]
fn templates_that_ask_for_too_much_memory_or_time_fail_within_their_limits() {
    for template in [
        "{{ 'x' * 10000000000 }}",
        "{{ [1] * 10000000000 }}",
        "{{ (1,) * 10000000000 }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '%2000000000d' % 1 }}",
        "{{ '%.2000000000f' % 1 }}",
        "{{ '%*s' % (2000000000, 1) }}",
        "{{ '{:2000000000}'.format(1) }}",
        "{{ '{:.2000000000f}'.format(1.5) }}",
        "{{ '{:02000000000,}'.format(1) }}",
        "{{ 'x'.center(2000000000) }}",
        "{{ 'x'.ljust(2000000000) }}",
        "{{ 'x'.zfill(2000000000) }}",
        "{{ '\t'.expandtabs(2000000000) }}",
        "{{ 'x'|center(2000000000) }}",
        "{{ 'x\ny'|indent(2000000000) }}",
        "{{ 'x'|indent(2000000000, true) }}",
        "{{ [1]|tojson(indent=2000000000) }}",
        "{{ [1]|batch(2000000000, 'x')|list }}",
        "{{ [1]|slice(2000000000, 'x')|list }}",
        "{{ 10 ** 1000000000 }}",
        "{{ 2 ** 100000 }}",
        "{{ 1.5|round(2000000000) * 10 ** 40 }}",
        "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='xx') %}{% for i in range(64) %}{% set ns.s = ns.s.replace('x', 'xx') %}{% endfor %}",
        "{% set ns = namespace(s='xx') %}{% for i in range(64) %}{% set ns.s = ns.s|replace('', ns.s) %}{% endfor %}",
        "{% set ns = namespace(s='xx') %}{% for i in range(64) %}{% set ns.s = ns.s.join(ns.s) %}{% endfor %}",
        "{% set ns = namespace(s='xx') %}{% for i in range(64) %}{% set ns.s = [ns.s, ns.s]|join %}{% endfor %}",
        "{% set ns = namespace(s='xx') %}{% for i in range(64) %}{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}",
        "{% set ns = namespace(s='xx') %}{% for i in range(64) %}{% set ns.s = '{0}{0}'.format(ns.s) %}{% endfor %}",
        "{% set ns = namespace(s='<') %}{% for i in range(64) %}{% set ns.s = ns.s|forceescape %}{% endfor %}{{ ns.s * 64 * 1000000 }}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(120) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(120) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s|tojson }}",
        "{% set ns = namespace(s=[1], t=[1]) %}{% for i in range(120) %}{% set ns.s = [ns.s, ns.s] %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.s == ns.t }}",
        "{% set ns = namespace(s=(1,), t=(1,)) %}{% for i in range(120) %}{% set ns.s = (ns.s, ns.s) %}{% endfor %}{{ {ns.s: 1} }}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
        "{% for i in range(100000) %}{{ 'x' * 100000 }}{% endfor %}",
        "{% for i in range(100000) %}{{ range(100000)|list|length }}{% endfor %}",
        "{% set x = 'x' * 60000000 %}{% for i in range(100000) %}{{ 'y' in x }}{% endfor %}",
        "{% set x = 'x' * 60000000 %}{% for i in range(100000) %}{{ x[59999999] }}{{ x.upper()[0] }}{% endfor %}",
        "{% set x = 'ä' * 9000000 %}{% for i in range(100000) %}{{ x[8999999] }}{% endfor %}",
        "{% set x = ('x ' * 1000000).split() %}{% for i in range(1000) %}{{ (x|sort)[0] }}{% endfor %}",
        "{% macro f() %}{% macro g() %}{% endmacro %}{% set ns.m = [g, ns.m] %}{% endmacro %}{% set ns = namespace(m=0) %}{% for i in range(100000) %}{{ f() }}{% endfor %}",
        "{% for i in range(100000) %}{% set x = namespace(a=i) %}{% for j in range(10) %}{% set y = namespace(a=j) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ ('a' * 1000000)|urlize ~ ('http://' * 9000000)|urlize }}",
        "{{ ('aaaaaaaaa-' * 900000)|wordwrap(1)|wordwrap(1)|wordwrap(1)|wordwrap(1)|wordwrap(1)|wordwrap(1)|wordwrap(1)|wordwrap(1) ~ 'x' * 100000000 }}",
    ] {
        let error = on_small_stack(template).expect_err(template);
        let bounded = matches!(&error, Error::Limit { .. })
            || matches!(&error, Error::Failed { message, .. } if message.contains("too") || message.contains("128 bits") || message.contains("invalid") || message.contains("more than"));
        assert!(bounded, "{template}: {error}");
    }
}

#[test]
fn a_rendering_ends_soon_after_it_is_cancelled() {
    let template = Template::parse("{% for i in range(100000) %}{% for j in range(1000) %}x{% endfor %}{% endfor %}");
    let asked = Cell::new(0);
    let cancelled = || {
        asked.set(asked.get() + 1);
        asked.get() > 3
    };
    let limits = Limits { steps: u64::MAX, memory: 1 << 30 };
    let rendered = template.unwrap().render([], NaiveDateTime::default(), limits, &cancelled);
    assert_eq!(rendered, Err(Error::Cancelled));
    assert_eq!(asked.get(), 4);
}

#[test]
fn what_a_template_drops_can_be_used_again() {
    let limits = Limits { steps: 10_000_000, memory: 1 << 20 };
    let template = "{% for i in range(1000) %}{% set x = 'x' * 100000 %}{% set y = [x] * 100 %}{% endfor %}ok";
    assert_eq!(render_with(template, limits).as_deref(), Ok("ok"));
}

/// Pieces that templates are made of.
const SOUP: &[&str] = &[
    "{{ ",
    " }}",
    "{% ",
    " %}",
    "{%- ",
    " -%}",
    "{#",
    "#}",
    "for ",
    "x ",
    "in ",
    "endfor",
    "if ",
    "else",
    "elif ",
    "endif",
    "set ",
    "endset",
    "macro m(x, y=1)",
    "endmacro",
    "call m(1)",
    "endcall",
    "filter upper",
    "endfilter",
    "with x = 1",
    "endwith",
    "block b",
    "endblock",
    "generation",
    "endgeneration",
    "raw",
    "endraw",
    "messages",
    "loop",
    "loop.index",
    "loop.nextitem",
    "namespace(a=1)",
    "range(3)",
    "range(99999)",
    "'a'",
    "\"ä\"",
    "'{:>9999}'",
    "'%s%5d'",
    "1",
    "-7",
    "2.5",
    "1e300",
    "none",
    "true",
    "[",
    "]",
    "(",
    ")",
    "{",
    "}",
    ",",
    ":",
    ".",
    "|",
    "~",
    "+",
    "-",
    "*",
    "**",
    "/",
    "//",
    "%",
    "==",
    "<",
    " not ",
    " and ",
    " or ",
    " is ",
    " in ",
    "=",
    "|list",
    "|tojson(indent=2)",
    "|map('upper')",
    "|join(',')",
    "|groupby('role')",
    "|sort",
    "|unique",
    "|batch(2)",
    "|slice(3)",
    "|indent(3)",
    "|wordwrap(3)",
    "|urlize",
    "|pprint",
    "|striptags",
    "|safe",
    "|e",
    "|round(1)",
    "|int",
    "|first",
    "|last",
    "|reverse",
    "|truncate(3)",
    ".format(1, x=2)",
    ".split()",
    ".items()",
    ".upper()",
    ".center(9)",
    ".join(['x'])",
    "[1:]",
    "[::-1]",
    "[0]",
    "['role']",
    ".role",
    "break",
    "continue",
    "\n",
    "  ",
    "text",
    "caller()",
    "self.b()",
    "x",
    "m(1)",
    "defined",
    "odd",
    "recursive",
    "scoped",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_template_of_random_pieces_panics(pieces in prop::collection::vec(prop::sample::select(SOUP), 0..24)) {
        let limits = Limits { steps: 20_000, memory: 1 << 20 };
        if let Err(error) = render_with(&pieces.concat(), limits) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn no_expression_of_random_pieces_panics(pieces in prop::collection::vec(prop::sample::select(&SOUP[34..110]), 1..12)) {
        let limits = Limits { steps: 20_000, memory: 1 << 20 };
        let template = format!("{{% for x in messages %}}{{{{ {} }}}}{{% endfor %}}", pieces.concat());
        if let Err(error) = render_with(&template, limits) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn no_text_panics_whatever_is_done_with_it(text in "\\PC{0,12}", more in "[%{}()\\[\\]:!.0-9a-z<>^=+#*, -]{0,12}", n in -4i32..8) {
        let variables = [("t", Data::Str(text)), ("u", Data::Str(more)), ("n", Data::Int(n.into()))];
        for expression in [
            "t % u", "u % (t, n)", "u.format(t, n)", "u.format(n, t)", "('{:' ~ u ~ '}').format(n)", "('{:' ~ u ~ '}').format(t)",
            "('{:' ~ u ~ '}').format(n / 3)", "('%' ~ u ~ 'f') % (n, n)", "t[n:]", "t[:n]", "t[::n]", "t[n]", "t.find(u, n)",
            "t.split(u)", "t.rsplit(u, n)", "t.split(none, n)", "t.partition(u)", "t.center(n, u)", "t|wordwrap(n)", "t|truncate(n, true)",
            "t|indent(n)", "(t ~ u)|striptags", "(t ~ u)|urlize", "t|title", "t.title()", "t.swapcase()", "u|int(0, n)", "u|float", "u|int",
            "t.expandtabs(n)", "t.zfill(n)", "t.replace(u, t, n)", "t.count(u, n)", "t|tojson(true)", "[t]|string", "t|pprint",
            "strftime_now(t)", "strftime_now('%' ~ u)", "t|urlencode", "(t * 9)|pprint", "(t ~ '-' ~ t)|wordwrap(n)", "t.splitlines(n)",
            "n|round(n)", "(n / 7)|round(n, 'floor')", "n|filesizeformat", "n ** n", "n // (n + 9)", "t|slice(n)|list", "t|batch(n)|list",
        ] {
            let template = Template::parse(&format!("{{{{ {expression} }}}}")).unwrap();
            let limits = Limits { steps: 200_000, memory: 1 << 22 };
            let variables = variables.iter().map(|(name, value)| (*name, value));
            let _ = template.render(variables, NaiveDateTime::default(), limits, &|| false);
        }
    }
}
