//! The head of an answer as it arrives, read leniently beside the HTTP client.
//!
//! The status line is the answer to a delivery (docs/adr/0002); what follows it only matters for using the connection
//! again. The client gives up an answer whose head it cannot read to its end, so what arrives is also read here: line
//! by line, within a bound, and only until the head is complete. Pure: bytes in, a status out.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// The most bytes of a head that are kept; the client gives up at the same length.
pub(super) const MAX_HEAD: usize = 64 * 1024;
/// What is kept allocated between two answers.
const SPARE: usize = 4 * 1024;
/// What a request begins with.
const METHODS: [&[u8]; 2] = [b"POST ", b"GET "];

/// What has arrived of the answer to the last request of one connection.
#[derive(Debug, Default)]
pub(super) struct Head {
    phase: Phase,
    /// The line that is under way; after the final status line, all lines.
    bytes: Vec<u8>,
    /// Where the line that is under way begins.
    line: usize,
    /// Whether anything at all was read since the request began.
    heard: bool,
    /// How many requests began.
    requests: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// Nothing was asked yet.
    #[default]
    Unused,
    /// Before the end of a status line.
    StatusLine,
    /// In the headers of an interim answer (1xx).
    Interim,
    /// In the headers of the answer.
    Headers(StatusCode),
    /// The whole head is there.
    Complete(StatusCode),
    /// No HTTP/1.
    Unreadable,
}

impl Head {
    /// Takes note of bytes that are written, which may begin a request.
    ///
    /// A request begins after something of the answer to the one before was read, so the rest of a long body is not
    /// taken for one unless it looks like it and is answered early.
    pub(super) fn written(&mut self, bytes: &[u8]) {
        let begins =
            self.phase == Phase::Unused || (self.heard && METHODS.iter().any(|method| bytes.starts_with(method)));
        if begins {
            self.bytes.clear();
            self.bytes.shrink_to(SPARE);
            (self.phase, self.line, self.heard) = (Phase::StatusLine, 0, false);
            self.requests += 1;
        }
    }

    /// Takes note of bytes that were read.
    pub(super) fn read(&mut self, mut bytes: &[u8]) {
        self.heard |= !bytes.is_empty();
        while !bytes.is_empty() && self.is_under_way() {
            let (line, rest) = match memchr::memchr(b'\n', bytes) {
                Some(end) => bytes.split_at(end + 1),
                None => (bytes, &[][..]),
            };
            bytes = rest;
            let room = MAX_HEAD - self.bytes.len();
            if line.len() > room {
                self.bytes.extend_from_slice(&line[..room]);
                // A status stays what it is, however long its headers are.
                if !matches!(self.phase, Phase::Headers(_)) {
                    self.phase = Phase::Unreadable;
                }
                return;
            }
            self.bytes.extend_from_slice(line);
            if line.ends_with(b"\n") {
                self.line_ends();
            }
        }
    }

    fn line_ends(&mut self) {
        let line = without_end(&self.bytes[self.line..]);
        let is_empty = line.is_empty();
        let next = match self.phase {
            Phase::StatusLine if is_empty => Phase::StatusLine,
            Phase::StatusLine => match status(line) {
                Some(status) if is_interim(status) => Phase::Interim,
                Some(status) => Phase::Headers(status),
                None => Phase::Unreadable,
            },
            Phase::Interim if is_empty => Phase::StatusLine,
            Phase::Headers(status) if is_empty => Phase::Complete(status),
            same => same,
        };
        if matches!(self.phase, Phase::Headers(_)) {
            self.line = self.bytes.len();
        } else {
            self.bytes.clear();
        }
        self.phase = next;
    }

    /// Whether what is read next belongs to a head.
    pub(super) fn is_under_way(&self) -> bool {
        matches!(self.phase, Phase::StatusLine | Phase::Interim | Phase::Headers(_))
    }

    /// Whether the status is there and the rest of its head is not.
    pub(super) fn is_unfinished(&self) -> bool {
        matches!(self.phase, Phase::Headers(_))
    }

    /// Whether nothing was read since the last request began.
    pub(super) fn is_silent(&self) -> bool {
        !self.heard
    }

    /// How many requests began on the connection.
    pub(super) fn requests(&self) -> u64 {
        self.requests
    }

    /// The final status, if it has arrived, and those headers behind it that have arrived whole and can be read.
    pub(super) fn answer(&self) -> Option<(StatusCode, HeaderMap)> {
        match self.phase {
            Phase::Headers(status) | Phase::Complete(status) => Some((status, self.headers())),
            Phase::Unused | Phase::StatusLine | Phase::Interim | Phase::Unreadable => None,
        }
    }

    fn headers(&self) -> HeaderMap {
        let mut unfolded: Vec<Vec<u8>> = Vec::new();
        for line in self.bytes[..self.line].split_inclusive(|byte| *byte == b'\n').map(without_end) {
            match unfolded.last_mut() {
                Some(before) if line.starts_with(b" ") || line.starts_with(b"\t") => {
                    before.push(b' ');
                    before.extend_from_slice(line.trim_ascii());
                }
                _ => unfolded.push(line.to_vec()),
            }
        }
        unfolded.iter().filter_map(|line| header(line)).fold(HeaderMap::new(), |mut headers, (name, value)| {
            headers.append(name, value);
            headers
        })
    }
}

fn header(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
    Some((HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?))
}

/// A line without the characters that end it.
fn without_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// The status of a status line (RFC 9112, section 4); its words may be anything.
fn status(line: &[u8]) -> Option<StatusCode> {
    let rest = line.strip_prefix(b"HTTP/1.1 ").or_else(|| line.strip_prefix(b"HTTP/1.0 "))?;
    let (digits, rest) = rest.split_at_checked(3)?;
    if !digits.iter().all(u8::is_ascii_digit) || !matches!(rest.first(), None | Some(b' ')) {
        return None;
    }
    StatusCode::from_bytes(digits).ok()
}

/// Whether another answer follows this one. 101 is the last one: nothing that was asked for changes the protocol.
fn is_interim(status: StatusCode) -> bool {
    status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn after(answer: &[u8], apart: usize) -> Head {
        let mut head = Head::default();
        head.written(b"POST / HTTP/1.1\r\n\r\n");
        answer.chunks(apart).for_each(|chunk| head.read(chunk));
        head
    }

    fn status_of(answer: &str) -> Option<u16> {
        after(answer.as_bytes(), 7).answer().map(|(status, _)| status.as_u16())
    }

    #[test]
    fn a_status_line_with_its_end_is_a_status_whatever_follows() {
        for rest in ["", "x", "x : y\r\n", "\0\r\n", " folded\r\n", "no colon\r\n", "\r\nbody", "\n"] {
            assert_eq!(status_of(&format!("HTTP/1.1 202 Accepted\r\n{rest}")), Some(202), "{rest:?}");
        }
        for line in ["HTTP/1.0 503 \n", "\r\n\nHTTP/1.1 503\r\n", "HTTP/1.1 503 \u{1}\u{7f}\r\n"] {
            assert_eq!(status_of(line), Some(503), "{line:?}");
        }
    }

    #[test]
    fn half_a_status_line_and_what_is_no_http_is_no_status() {
        for text in [
            "",
            "HTTP/1.1 200",
            "HTTP/1.1 200 O",
            "HTTP/2 200 OK\r\n",
            "HTTP/1.1 2000 OK\r\n",
            "HTTP/1.1 20\r\n",
            "HTTP/1.1 2x0 OK\r\n",
            "HTTP/1.1 099 OK\r\n",
            "HTTP/1.1  200 OK\r\n",
            "ICY 200 OK\r\n",
            "hello\r\n",
            "x\r\nHTTP/1.1 200 OK\r\n",
        ] {
            assert_eq!(status_of(text), None, "{text:?}");
        }
    }

    #[test]
    fn interim_answers_are_passed_over_and_101_is_final() {
        let interim = "HTTP/1.1 103 Early Hints\r\nlink : </x>\r\nodd\r\n\r\n";
        assert_eq!(status_of(interim), None);
        assert_eq!(status_of(&format!("{interim}HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 Done\r\nx")), Some(204));
        assert_eq!(status_of("HTTP/1.1 101 Switching Protocols\r\n"), Some(101));
    }

    #[test]
    fn headers_are_taken_where_they_are_whole_and_can_be_read() {
        let text = "HTTP/1.1 503 Busy\r\nRetry-After : 120\r\nno colon\r\nx-folded: a\r\n\tb\r\ns p: x\r\nx-cut: 1";
        let (_, headers) = after(text.as_bytes(), 3).answer().unwrap();
        assert_eq!((headers["retry-after"].as_bytes(), headers["x-folded"].as_bytes()), (&b"120"[..], &b"a b"[..]));
        assert_eq!(headers.len(), 2, "{headers:?}");
    }

    #[test]
    fn headers_without_end_keep_their_status_and_a_line_without_end_is_none() {
        let endless = [b"HTTP/1.1 200 OK\r\n".to_vec(), vec![b'x'; 2 * MAX_HEAD]].concat();
        let head = after(&endless, 8192);
        assert_eq!(head.answer().unwrap().0, 200);
        assert!(head.bytes.len() <= MAX_HEAD && head.is_unfinished());
        assert!(after(&[b"HTTP/1.1 200 ".to_vec(), vec![b'x'; 2 * MAX_HEAD]].concat(), 8192).answer().is_none());
    }

    #[test]
    fn the_next_request_has_an_answer_of_its_own() {
        let mut head = after(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 99);
        assert_eq!((head.requests(), head.is_silent(), head.is_under_way()), (1, false, false));
        head.written(b"the rest of a long body");
        assert_eq!(head.requests(), 1);
        head.written(b"POST / HTTP/1.1\r\n\r\n");
        head.written(b"POST is how this body begins");
        assert_eq!((head.requests(), head.is_silent(), head.answer()), (2, true, None));
    }

    proptest! {
        #[test]
        fn what_arrives_in_pieces_is_read_as_if_it_came_at_once(answer: Vec<u8>, apart in 1_usize..9) {
            let answer = [b"HTTP/1.1 200 OK\r\n".to_vec(), answer].concat();
            prop_assert_eq!(after(&answer, apart).answer(), after(&answer, answer.len()).answer());
        }
    }
}
