//! The variables that a template reads, as `jinja2.meta.find_undeclared_variables` gives them in the environment of transformers.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test they are failures of the test")]

use std::collections::BTreeSet;

use kaito_jinja::Template;

/// By template in `chats/`. Jinja2 also names variables of the template's own that are assigned in some branch only.
const UNDECLARED: &[(&str, &str, &str)] = &[
    ("chatml", "add_generation_prompt messages", ""),
    (
        "command-r",
        "add_generation_prompt bos_token documents messages tools",
        "json_to_python_type loop_messages system_message",
    ),
    ("deepseek", "add_generation_prompt bos_token messages", "content"),
    ("falcon", "add_generation_prompt messages", ""),
    ("gemma-3", "add_generation_prompt bos_token messages", "first_user_prefix loop_messages role"),
    ("gemma", "add_generation_prompt bos_token messages", "role"),
    ("granite", "add_generation_prompt messages tools", ""),
    ("hermes-tools", "messages tools", ""),
    ("llama-2", "bos_token eos_token messages", "content loop_messages system_message"),
    (
        "llama-3.1",
        "add_generation_prompt bos_token builtin_tools custom_tools date_string messages tools tools_in_user_message",
        "first_user_message system_message tool_call",
    ),
    ("mistral-v3-tools", "bos_token eos_token messages tools", "content loop_messages system_message"),
    ("phi-3", "add_generation_prompt eos_token messages", ""),
    ("qwen-2.5", "add_generation_prompt messages tools", ""),
    ("qwen-3", "add_generation_prompt enable_thinking messages", "content reasoning_content"),
    ("zephyr", "add_generation_prompt eos_token messages", ""),
];

fn names(source: &str) -> BTreeSet<String> {
    Template::parse(source).unwrap().free_names().map(str::to_owned).collect()
}

fn set(names: &str) -> BTreeSet<String> {
    names.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn the_names_are_those_of_the_reference_but_for_the_templates_own() {
    let mut count = 0;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chats")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let (_, given, own) = UNDECLARED.iter().find(|(template, ..)| *template == name).unwrap();
        let found = names(&std::fs::read_to_string(path).unwrap());
        let wanted = set(given);
        let more: BTreeSet<_> = found.difference(&wanted).cloned().collect();
        assert!(found.is_superset(&wanted) && more.is_subset(&set(own)), "{name}: {found:?}");
        count += 1;
    }
    assert_eq!(count, UNDECLARED.len());
}

#[test]
fn a_name_is_free_where_it_may_be_read_unassigned() {
    for (source, free) in [
        ("{% set x = 1 %}{{ x }}", ""),
        ("{{ x }}{% set x = 1 %}", "x"),
        ("{% set x = x %}", "x"),
        ("{% if a %}{% set x = 1 %}{% endif %}{{ x }}", "a x"),
        ("{% if a %}{% set x = 1 %}{% else %}{% set x = 2 %}{% endif %}{{ x }}", "a"),
        ("{% if a %}{% set x = 1 %}{% elif b %}{% set x = 2 %}{% endif %}{{ x }}", "a b x"),
        ("{% if not x is defined %}{% set x = none %}{% endif %}", "x"),
        ("{% for x in y %}{{ x }}{{ loop.index }}{% endfor %}{{ x }}{{ loop }}", "loop x y"),
        ("{% for x in y if x in z %}{% set w = 1 %}{% else %}{{ w }}{% endfor %}", "w y z"),
        ("{% macro f(a, b=c) %}{{ a }}{{ caller() }}{{ f }}{{ kwargs }}{{ d }}{% endmacro %}{{ f(e) }}", "c d e"),
        ("{% call(a) f(b) %}{{ a }}{% endcall %}", "b f"),
        ("{% with a = b %}{{ a }}{% endwith %}{{ a }}", "a b"),
        ("{% set ns = namespace(x=y) %}{% set ns.x = z %}{{ ns.x }}", "y z"),
        ("{% set m.x = 1 %}", "m"),
        ("{% set t %}{{ a }}{% endset %}{{ t | f(b) if 0 else c[d:e] }}", "a b c d e"),
        ("{% filter indent(w) %}{{ a ~ b }}{% endfilter %}", "a b w"),
        ("{{ range(3) }}{{ raise_exception('x') }}{{ self }}{{ strftime_now('%d') }}", ""),
        ("{{ {'k': v}.get(k, [a, (b, c)]) is divisibleby(n) and not o or -p ** q }}", "a b c k n o p q v"),
        ("{% block x %}{{ a }}{% endblock %}{% autoescape b %}{{ c }}{% endautoescape %}", "a b c"),
    ] {
        let source = source.replace("| f(b)", "| default(b)");
        assert_eq!(names(&source), set(free), "{source}");
    }
}

#[test]
fn finding_names_takes_time_in_proportion_to_the_template() {
    // A name in each of many branches, under many loops.
    let branches: String = (0..8000).map(|i| format!("{{% if a %}}{{% set x{i} = loop %}}{{% endif %}}")).collect();
    let source = format!("{}{branches}{}", "{% for i in j %}".repeat(30), "{% endfor %}".repeat(30));
    assert_eq!(names(&source), set("a j"));
}
