//! The functions that a program can call, and those that only the compiler puts in.

use jaq_core::load::{self, parse::Def};
use jaq_core::native::{Filter, Fun, bome, run, unary, v};
use jaq_core::{Error, RunPtr, ValR};
use jaq_json::{Val, read};

use super::MAX_NUMBER;
use super::meter::{Meter, Metered, paid};

/// A function by name and number of arguments.
pub(super) struct Function {
    pub(super) name: &'static str,
    pub(super) arguments: usize,
    /// Whether it reads its input to its depth.
    pub(super) is_deep: bool,
    /// Whether its argument has to be a constant.
    pub(super) takes_constant: bool,
}

/// Pays for a value and its direct parts.
pub(super) const SHALLOW: &str = "paid";
/// Pays for a value with everything in it.
pub(super) const DEEP: &str = "paid_deep";
/// Pays for what something is looked up by, which is a text or a number; a list would be searched for.
pub(super) const KEY: &str = "key_only";

/// Everything that a program can call.
pub(super) const FUNCTIONS: [Function; 26] = [
    plain("null", 0),
    plain("true", 0),
    plain("false", 0),
    plain("empty", 0),
    plain("not", 0),
    plain("select", 1),
    plain("map", 1),
    plain("values", 0),
    plain("type", 0),
    plain("length", 0),
    plain("first", 0),
    plain("last", 0),
    deep("keys", 0),
    plain("to_entries", 0),
    Function { takes_constant: true, ..plain("has", 1) },
    deep("join", 1),
    deep("tostring", 0),
    deep("tojson", 0),
    plain("tonumber", 0),
    plain("ascii_downcase", 0),
    plain("ascii_upcase", 0),
    plain("trim", 0),
    plain("startswith", 1),
    plain("endswith", 1),
    plain("ltrimstr", 1),
    plain("rtrimstr", 1),
];

const fn plain(name: &'static str, arguments: usize) -> Function {
    Function { name, arguments, is_deep: false, takes_constant: false }
}

const fn deep(name: &'static str, arguments: usize) -> Function {
    Function { name, arguments, is_deep: true, takes_constant: false }
}

/// What is defined in the language itself. Every `.[]` pays.
const DEFINITIONS: &str = r#"
    def null: [][0];
    def true: 0 == 0;
    def false: 0 != 0;
    def empty: [][];
    def not: if . then false else true end;
    def select(f): if f then . else empty end;
    def map(f): [.[] | paid | f];
    def values: if . == null then empty else . end;
    def type:
        if . == null then "null" elif . == true or . == false then "boolean"
        elif . < "" then "number" elif . < [] then "string" elif . < {} then "array" else "object" end;
    def first: .[0];
    def last: .[-1];
    def keys: keys_unsorted | sort;
    def to_entries: [key_values[] | paid | . as [$key, $value] | {$key, $value}];
    def tostring: "\(.)";
"#;

/// Native functions of the language's own library that are let in.
const LIBRARY: [&str; 13] = [
    "length",
    "has",
    "tojson",
    "keys_unsorted",
    "key_values",
    "sort",
    "ascii_downcase",
    "ascii_upcase",
    "trim",
    "startswith",
    "endswith",
    "ltrimstr",
    "rtrimstr",
];

/// The definitions.
pub(super) fn definitions() -> Vec<Def<&'static str>> {
    // A test sees to it that they parse.
    load::parse(DEFINITIONS, |parser| parser.defs()).unwrap_or_default()
}

/// The native functions.
pub(super) fn natives() -> impl Iterator<Item = Fun<Metered>> {
    let is_let_in = |name: &str| LIBRARY.contains(&name);
    let library = jaq_core::funs().chain(jaq_std::base_funs()).chain(jaq_json::funs());
    let own: [Filter<RunPtr<Metered>>; 5] = [
        (SHALLOW, v(0), |cv| paid(cv, Meter::pay_shallow)),
        (DEEP, v(0), |cv| paid(cv, Meter::pay_deep)),
        (KEY, v(0), |cv| paid(cv, Meter::pay_key)),
        ("tonumber", v(0), |cv| bome(to_number(cv.1))),
        ("join", v(1), |cv| unary(cv, |items, separator| join(&items, &separator))),
    ];
    library.filter(move |(name, ..)| is_let_in(name)).chain(own.map(run::<Metered>))
}

/// Numbers as JSON writes them, and nothing else.
fn to_number(value: Val) -> ValR<Val> {
    let Val::TStr(text) = &value else {
        return if matches!(value, Val::Num(_)) { Ok(value) } else { Err(Error::str("not a number")) };
    };
    let is_number = text.len() <= MAX_NUMBER && serde_json::from_slice::<serde_json::Number>(text).is_ok();
    let number = is_number.then(|| read::parse_single(text).ok()).flatten();
    number.ok_or_else(|| Error::str("not a number"))
}

/// The items as one text: texts as they are, numbers and words as they are written, null as nothing.
fn join(items: &Val, separator: &Val) -> ValR<Val> {
    let (Val::Arr(items), Val::TStr(separator)) = (items, separator) else {
        return Err(Error::str("join takes a list and a text"));
    };
    let mut joined = Vec::new();
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            joined.extend_from_slice(separator);
        }
        match item {
            Val::Null => {}
            Val::TStr(text) => joined.extend_from_slice(text),
            Val::Bool(_) | Val::Num(_) => joined.extend_from_slice(item.to_string().as_bytes()),
            _ => return Err(Error::str("join takes a list of texts, numbers and words")),
        }
    }
    Ok(Val::utf8_str(joined))
}
