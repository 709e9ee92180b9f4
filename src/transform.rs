//! A small transformation of a JSON document, in the language of jq: select, rename, add a constant.
//!
//! The document comes from outside and the program may be handed in at run time, so neither may cost more than a
//! bounded amount of time and memory. The language is therefore a part of jq ([`program`] says which): without
//! definitions, variables, folds and recursion, a program is a pipe of a fixed length. What can still multiply is
//! paid for from a budget ([`meter`]) that grows with the document. No clock is asked: the same program and document
//! give the same result on every machine, however busy it is.
//!
//! Messages never repeat the document.

mod functions;
mod meter;
mod program;

use std::fmt::{self, Write as _};
use std::sync::Arc;

use jaq_core::{Ctx, Vars};
use jaq_json::{Val, read};
use serde::Deserialize;
use serde::de::IgnoredAny;

use self::meter::{Meter, Metered};
pub use self::program::ProgramError;

/// The largest document that is transformed, in bytes.
pub(crate) const MAX_INPUT: usize = 1024 * 1024;
/// The deepest nesting of a document; deeper ones could exhaust the stack.
const MAX_DEPTH: usize = 128;
/// The longest number: longer ones cost more than their length to read and write.
const MAX_NUMBER: usize = 256;

/// A program that was understood, and is bounded.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct Transform(Arc<Compiled>);

struct Compiled {
    source: String,
    terms: u64,
    filter: meter::Filter,
}

/// Why there is no result. The text says nothing of the document but its size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransformError {
    /// It is larger than can be transformed.
    #[error("the body has {0} bytes, and at most {MAX_INPUT} are transformed")]
    InputTooLarge(usize),
    /// It is not JSON, strictly.
    #[error("the body is not JSON")]
    NotJson,
    /// It is JSON, and yet.
    #[error("the body nests deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// It is JSON, and yet.
    #[error("the body has a number of more than {MAX_NUMBER} characters")]
    LongNumber,
    /// The program met something that it cannot work with.
    #[error("the transformation does not fit the body: {0}")]
    Misfit(&'static str),
    /// The budget is used up.
    #[error("the transformation would take more work than a body of this size is given")]
    TooMuchWork,
    /// Nothing came out.
    #[error("the transformation gave nothing")]
    NoOutput,
    /// More than one document came out.
    #[error("the transformation gave more than one result; collect them with [...]")]
    ManyOutputs,
    /// What came out is too large.
    #[error("the transformation gave more than {0} bytes")]
    OutputTooLarge(usize),
    /// What came out is not JSON, for example an object whose key is a number.
    #[error("the transformation gave something that is not JSON, such as a key that is no text")]
    OutputNotJson,
}

impl Transform {
    /// Understands a program. The error says what is wrong, and where.
    pub fn parse(source: &str) -> Result<Self, ProgramError> {
        let (filter, terms) = program::compile(source)?;
        Ok(Self(Arc::new(Compiled { source: source.to_owned(), terms, filter })))
    }

    /// The program, as it was written.
    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// Transforms a document into one of at most `max_output` bytes.
    ///
    /// Bounded, but not short: of programs made to run away over a document of a megabyte, the slowest took 0.7 s and
    /// the largest 130 MB, optimised, on two shared cores. Not for a thread that others wait for.
    pub fn apply(&self, document: &[u8], max_output: usize) -> Result<Vec<u8>, TransformError> {
        check(document)?;
        let input = read::parse_single(document).map_err(|_| TransformError::NotJson)?;
        let meter = Meter::new(&input, self.0.terms);
        let context = Ctx::<Metered>::new(meter::Run { lut: &self.0.filter.lut, meter: &meter }, Vars::new([]));
        let mut outputs = self.0.filter.id.run((context, input));
        let output = match outputs.next() {
            None => return Err(TransformError::NoOutput),
            Some(output) => output.map_err(|error| meter.explain(error))?,
        };
        match outputs.next() {
            None => write(&output, max_output),
            Some(Ok(_)) => Err(TransformError::ManyOutputs),
            Some(Err(error)) => Err(meter.explain(error)),
        }
    }
}

impl TryFrom<String> for Transform {
    type Error = ProgramError;

    fn try_from(source: String) -> Result<Self, ProgramError> {
        Self::parse(&source)
    }
}

impl fmt::Debug for Transform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Transform").field(&self.0.source).finish()
    }
}

/// Whether a document is JSON, and of a kind that its reader can bear: that one is lenient and recurses.
fn check(document: &[u8]) -> Result<(), TransformError> {
    if document.len() > MAX_INPUT {
        return Err(TransformError::InputTooLarge(document.len()));
    }
    let text = std::str::from_utf8(document).map_err(|_| TransformError::NotJson)?;
    serde_json::from_str::<IgnoredAny>(text).map_err(|_| TransformError::NotJson)?;
    let (mut depth, mut number, mut in_text, mut escaped) = (0_usize, 0_usize, false, false);
    for byte in text.bytes() {
        if in_text {
            (in_text, escaped) = (escaped || byte != b'"', !escaped && byte == b'\\');
            continue;
        }
        match byte {
            b'"' => in_text = true,
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        number = if matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E') { number + 1 } else { 0 };
        if depth > MAX_DEPTH {
            return Err(TransformError::TooDeep);
        }
        if number > MAX_NUMBER {
            return Err(TransformError::LongNumber);
        }
    }
    Ok(())
}

fn write(output: &Val, most: usize) -> Result<Vec<u8>, TransformError> {
    let mut text = Bounded { text: String::new(), most };
    write!(text, "{output}").map_err(|_| TransformError::OutputTooLarge(most))?;
    // A key may be anything to jq.
    serde_json::from_str::<IgnoredAny>(&text.text).map_err(|_| TransformError::OutputNotJson)?;
    Ok(text.text.into_bytes())
}

/// A text that does not grow beyond its bound.
struct Bounded {
    text: String,
    most: usize,
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        if self.text.len() + more.len() > self.most {
            return Err(fmt::Error);
        }
        self.text.push_str(more);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
