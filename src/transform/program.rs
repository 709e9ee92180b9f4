//! Understanding a program: the part of jq that is bounded, with everything paid for that could multiply.
//!
//! Taken are paths, constants, lists and objects, `|` `,` `//` `and` `or`, comparisons, `if`, texts with `\(…)`, and the
//! functions of [`functions`]. Everything else is refused by name: what could run without end or
//! take the program elsewhere (definitions, variables, folds, recursion, `try`, modules, the environment), and
//! arithmetic and assignments, which a transformation of names hardly needs.

use std::fmt;

use jaq_core::Compiler;
use jaq_core::load::lex::{StrPart, Tok, Token};
use jaq_core::load::parse::{BinaryOp, Def, Parser, Term};
use jaq_core::load::{Arena, File, Lexer, Loader, span};
use jaq_core::path::{Opt, Part, Path};

use super::functions::{self, DEEP, FUNCTIONS, Function, KEY, SHALLOW};
use super::meter::Filter;

/// The longest program, in bytes.
const MAX_PROGRAM: usize = 2048;
/// The deepest nesting of brackets; more could exhaust the stack of whoever parses it.
const MAX_BRACKETS: usize = 32;
/// The most words and signs behind which the parser calls itself, for the same reason.
const MAX_RECURSING: usize = 64;
/// The deepest nesting of terms, for the same reason.
const MAX_DEPTH: usize = 64;
/// The most tokens, and the most terms, of a program.
const MAX_TOKENS: usize = 1024;
const MAX_TERMS: u64 = 256;
/// The name under which the program is compiled.
const MAIN: &str = "transformation";

/// What is wrong with a program, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramError {
    /// Line and column, from 1, where they are known.
    place: Option<(usize, usize)>,
    reason: String,
}

impl fmt::Display for ProgramError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((line, column)) = self.place {
            write!(formatter, "line {line}, column {column}: ")?;
        }
        formatter.write_str(&self.reason)
    }
}

impl std::error::Error for ProgramError {}

/// Compiles a program, and says how many terms it has.
pub(super) fn compile(source: &str) -> Result<(Filter, u64), ProgramError> {
    let refuse = |reason: String| Err(ProgramError { place: None, reason });
    if source.len() > MAX_PROGRAM {
        return refuse(format!("is longer than {MAX_PROGRAM} bytes"));
    }
    if brackets(source) > MAX_BRACKETS {
        return refuse(format!("nests deeper than {MAX_BRACKETS} brackets"));
    }
    let term = parse(source)?;
    if is_deeper(&term, MAX_DEPTH) {
        return refuse(format!("nests deeper than {MAX_DEPTH} terms; a `,` or a `|` is one as well"));
    }
    let mut meter = Metering { source, terms: 0 };
    let body = meter.term(term)?;
    if meter.terms > MAX_TERMS {
        return refuse(format!("has more than {MAX_TERMS} terms"));
    }
    let main = Def { name: MAIN, args: Vec::new(), body };
    let arena = Arena::default();
    let loader = Loader::new(functions::definitions().into_iter().chain([main]));
    // What is called is known by now, so neither of these fails on account of the program.
    let loaded = loader.load(&arena, File { code: MAIN, path: () });
    let modules = loaded.map_err(|_| ProgramError { place: None, reason: "cannot be loaded".to_owned() })?;
    let compiled = Compiler::default().with_funs(functions::natives()).compile(modules);
    match compiled {
        Ok(filter) => Ok((filter, meter.terms)),
        Err(_) => refuse("cannot be compiled".to_owned()),
    }
}

fn parse(source: &str) -> Result<Term<&str>, ProgramError> {
    let error = |part: &str, expected: &str| ProgramError {
        place: Some(place(source, part)),
        reason: format!("expected {expected}"),
    };
    let tokens = Lexer::new(source).lex().map_err(|errors| match errors.first() {
        Some((expected, part)) => error(part, expected.as_str()),
        None => error(source, "a program"),
    })?;
    let (all, recursing) = count(&tokens);
    if all > MAX_TOKENS || recursing > MAX_RECURSING {
        let reason = format!("has more than {MAX_TOKENS} parts, or {MAX_RECURSING} of `if`, `-` and the like");
        return Err(ProgramError { place: None, reason });
    }
    Parser::new(&tokens).parse(|parser| parser.term()).map_err(|errors| match errors.first() {
        Some((expected, found)) => error(found.map_or(&source[source.len()..], |token| token.0), expected.as_str()),
        None => error(source, "a program"),
    })
}

/// How many tokens there are, and behind how many of them the parser calls itself.
fn count(tokens: &[Token<&str>]) -> (usize, usize) {
    let recursing = ["-", "if", "elif", "try", "def", "reduce", "foreach", "label", "as"];
    let inside = |token: &Token<&str>| match &token.1 {
        Tok::Block(inner) => count(inner),
        Tok::Str(parts) => parts.iter().fold((0, 0), |sum, part| match part {
            StrPart::Term(token) => add(sum, count(std::slice::from_ref(token))),
            _ => add(sum, (1, 0)),
        }),
        _ => (0, usize::from(recursing.contains(&token.0))),
    };
    tokens.iter().fold((0, 0), |sum, token| add(add(sum, (1, 0)), inside(token)))
}

fn add(left: (usize, usize), right: (usize, usize)) -> (usize, usize) {
    (left.0 + right.0, left.1 + right.1)
}

/// Whether terms nest deeper than so many levels. What is refused later counts as one level.
fn is_deeper(term: &Term<&str>, levels: usize) -> bool {
    // Each step of a path is put around the ones before it.
    let own = 1 + if let Term::Path(_, path) = term { path.0.len() } else { 0 };
    match levels.checked_sub(own) {
        None => true,
        Some(levels) => parts(term).into_iter().any(|part| is_deeper(part, levels)),
    }
}

/// The terms that a term consists of.
fn parts<'t, 's>(term: &'t Term<&'s str>) -> Vec<&'t Term<&'s str>> {
    match term {
        Term::Arr(Some(inner)) | Term::Neg(inner) => vec![inner],
        Term::BinOp(left, _, right) => vec![left, right],
        Term::Obj(members) => members.iter().flat_map(|(name, value)| [Some(name), value.as_ref()]).flatten().collect(),
        Term::IfThenElse(branches, otherwise) => {
            branches.iter().flat_map(|(when, what)| [when, what]).chain(otherwise.as_deref()).collect()
        }
        Term::Call(_, arguments) => arguments.iter().collect(),
        Term::Str(_, parts) => parts.iter().filter_map(interpolated).collect(),
        Term::Path(base, path) => path.0.iter().flat_map(inside).chain([&**base]).collect(),
        _ => Vec::new(),
    }
}

fn interpolated<'t, 's>(part: &'t StrPart<&'s str, Term<&'s str>>) -> Option<&'t Term<&'s str>> {
    match part {
        StrPart::Term(term) => Some(term),
        StrPart::Str(_) | StrPart::Char(_) => None,
    }
}

/// The terms of a step of a path.
fn inside<'t, 's>((part, _): &'t (Part<Term<&'s str>>, Opt)) -> impl Iterator<Item = &'t Term<&'s str>> {
    let terms = match part {
        Part::Index(key) => [Some(key), None],
        Part::Range(from, to) => [from.as_ref(), to.as_ref()],
    };
    terms.into_iter().flatten()
}

/// Line and column of a part of the source, from 1.
fn place(source: &str, part: &str) -> (usize, usize) {
    let before = source.get(..span(source, part).start).unwrap_or_default();
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

/// How deep brackets nest, at most.
fn brackets(source: &str) -> usize {
    let mut depth = 0_usize;
    let depths = source.bytes().map(|byte| {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth
    });
    depths.max().unwrap_or_default()
}

/// Puts the paying in, and refuses what is not taken.
struct Metering<'s> {
    source: &'s str,
    terms: u64,
}

type Taken<'s> = Result<Term<&'s str>, ProgramError>;

impl<'s> Metering<'s> {
    fn term(&mut self, term: Term<&'s str>) -> Taken<'s> {
        self.terms += 1;
        match term {
            Term::Id | Term::Num(_) | Term::Arr(None) => Ok(term),
            Term::Str(None, parts) => self.text(parts),
            Term::Arr(Some(items)) => Ok(then(Term::Arr(Some(self.boxed(*items)?)), SHALLOW)),
            Term::Obj(members) => self.object(members),
            Term::Neg(number) if matches!(*number, Term::Num(_)) => Ok(Term::Neg(number)),
            Term::BinOp(left, operator, right) => self.operation(*left, operator, *right),
            Term::IfThenElse(branches, otherwise) => {
                let branches = branches.into_iter().map(|(when, what)| Ok((self.term(when)?, self.term(what)?)));
                let branches = branches.collect::<Result<_, _>>()?;
                let otherwise = otherwise.map(|term| self.boxed(*term)).transpose()?;
                Ok(Term::IfThenElse(branches, otherwise))
            }
            Term::Call(name, arguments) => self.call(name, arguments),
            Term::Path(base, path) => self.path(*base, path),
            Term::Str(Some(name), _) | Term::Break(name) | Term::Var(name) | Term::Label(name, _) => {
                self.refuse(Some(name), &format!("`{name}`"))
            }
            Term::Fold(name, ..) => self.refuse(Some(name), &format!("`{name}`")),
            Term::Recurse => self.refuse(None, "`..`"),
            Term::Neg(_) => self.refuse(None, "arithmetic"),
            Term::TryCatch(..) => self.refuse(None, "`try`, also as `?` behind anything but a path,"),
            Term::Def(..) => self.refuse(None, "`def`"),
        }
    }

    fn boxed(&mut self, term: Term<&'s str>) -> Result<Box<Term<&'s str>>, ProgramError> {
        self.term(term).map(Box::new)
    }

    fn refuse<T>(&self, part: Option<&str>, what: &str) -> Result<T, ProgramError> {
        let place = part.map(|part| place(self.source, part));
        Err(ProgramError { place, reason: format!("{what} is not available in a transformation") })
    }

    /// What is put into a text is read to its depth, and the text is as long as all of it.
    fn text(&mut self, parts: Vec<StrPart<&'s str, Term<&'s str>>>) -> Taken<'s> {
        if is_plain(&parts) {
            return Ok(Term::Str(None, parts));
        }
        let part = |part| match part {
            StrPart::Term(term) => Ok(StrPart::Term(then(self.term(term)?, DEEP))),
            other => Ok(other),
        };
        let parts = parts.into_iter().map(part).collect::<Result<_, ProgramError>>()?;
        Ok(then(Term::Str(None, parts), SHALLOW))
    }

    fn object(&mut self, members: Vec<(Term<&'s str>, Option<Term<&'s str>>)>) -> Taken<'s> {
        let mut metered = Vec::with_capacity(members.len());
        for (name, value) in members {
            metered.push(match (name, value) {
                (Term::Str(None, parts), None) if is_plain(&parts) => (Term::Str(None, parts), None),
                (Term::Var(name), None) => return self.refuse(Some(name), &format!("`{name}`")),
                (_, None) => return self.refuse(None, "a member without a value, but for {name},"),
                (name, Some(value)) => (self.term(name)?, Some(self.term(value)?)),
            });
        }
        Ok(then(Term::Obj(metered), SHALLOW))
    }

    fn operation(&mut self, left: Term<&'s str>, operator: BinaryOp<&'s str>, right: Term<&'s str>) -> Taken<'s> {
        match operator {
            BinaryOp::Pipe(None) | BinaryOp::Alt | BinaryOp::Or | BinaryOp::And => {
                Ok(Term::BinOp(self.boxed(left)?, operator, self.boxed(right)?))
            }
            BinaryOp::Comma => Ok(then(Term::BinOp(self.boxed(left)?, operator, self.boxed(right)?), SHALLOW)),
            BinaryOp::Cmp(_) => Ok(Term::BinOp(self.compared(left)?, operator, self.compared(right)?)),
            BinaryOp::Pipe(Some(_)) => self.refuse(None, "`as`"),
            BinaryOp::Math(_) => self.refuse(None, "arithmetic"),
            BinaryOp::Assign | BinaryOp::Update | BinaryOp::UpdateMath(_) | BinaryOp::UpdateAlt => {
                self.refuse(None, "an assignment")
            }
        }
    }

    /// What is compared is read to its depth.
    fn compared(&mut self, term: Term<&'s str>) -> Result<Box<Term<&'s str>>, ProgramError> {
        let constant = is_constant(&term);
        let term = self.term(term)?;
        Ok(Box::new(if constant { term } else { then(term, DEEP) }))
    }

    /// A function reads its input, and what it gives is new.
    fn call(&mut self, name: &'s str, arguments: Vec<Term<&'s str>>) -> Taken<'s> {
        let known = |function: &&Function| function.name == name && function.arguments == arguments.len();
        let Some(function) = FUNCTIONS.iter().find(known) else {
            return self.unknown(name, arguments.len());
        };
        if function.takes_constant && !arguments.iter().all(is_constant) {
            return self.refuse(Some(name), &format!("`{name}` of anything but a constant"));
        }
        let arguments = arguments.into_iter().map(|term| self.term(term)).collect::<Result<_, _>>()?;
        let called = then(Term::Call(name, arguments), SHALLOW);
        Ok(pipe(Term::Call(if function.is_deep { DEEP } else { SHALLOW }, Vec::new()), called))
    }

    fn unknown(&self, name: &str, arguments: usize) -> Taken<'s> {
        let place = Some(place(self.source, name));
        let reason = match FUNCTIONS.iter().find(|function| function.name == name) {
            Some(function) => format!("`{name}` takes {} arguments, not {arguments}", function.arguments),
            None => {
                let names: Vec<&str> = FUNCTIONS.iter().map(|function| function.name).collect();
                format!("there is no function `{name}` in a transformation; there are {}", names.join(", "))
            }
        };
        Err(ProgramError { place, reason })
    }

    /// Steps by a constant cost nothing; `.[]` and slices do, and who looks something up by a value pays for that.
    fn path(&mut self, base: Term<&'s str>, path: Path<Term<&'s str>>) -> Taken<'s> {
        let mut term = self.term(base)?;
        for (part, optional) in path.0 {
            self.terms += 1;
            let step = |term, part| Term::Path(Box::new(term), Path(vec![(part, optional)]));
            term = match part {
                Part::Index(key) if is_constant(&key) => step(term, Part::Index(key)),
                Part::Index(key) => step(term, Part::Index(then(self.term(key)?, KEY))),
                Part::Range(None, None) => then(step(term, Part::Range(None, None)), SHALLOW),
                Part::Range(from, to) if from.iter().chain(&to).all(is_constant) => {
                    then(step(then(term, SHALLOW), Part::Range(from, to)), SHALLOW)
                }
                Part::Range(..) => return self.refuse(None, "a slice by anything but constants"),
            };
        }
        Ok(term)
    }
}

/// The term, and then a function without arguments.
fn then<'s>(term: Term<&'s str>, function: &'static str) -> Term<&'s str> {
    pipe(term, Term::Call(function, Vec::new()))
}

fn pipe<'s>(left: Term<&'s str>, right: Term<&'s str>) -> Term<&'s str> {
    Term::BinOp(Box::new(left), BinaryOp::Pipe(None), Box::new(right))
}

fn is_plain<T>(parts: &[StrPart<&str, T>]) -> bool {
    !parts.iter().any(|part| matches!(part, StrPart::Term(_)))
}

/// A text or a number, as it is written.
fn is_constant(term: &Term<&str>) -> bool {
    match term {
        Term::Num(_) => true,
        Term::Neg(number) => matches!(**number, Term::Num(_)),
        Term::Str(None, parts) => is_plain(parts),
        _ => false,
    }
}
