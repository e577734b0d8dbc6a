//! The Redis protocol: requests in, replies out.
//!
//! **Requests.** [`Parser`] reads one command at a time from the front of a receive buffer that its owner keeps: multibulk
//! (`*2\r\n$3\r\nGET\r\n$1\r\nk\r\n`) or inline (`GET k\r\n`). Arguments are not copied: a finished [`Frame`] lends them
//! as slices of that buffer. The order of events is
//!
//! ```text
//! parse(data) ──▶ None          keep `data`, append what arrives next, parse again
//!             ──▶ Some(frame)   run frame.args, then drop the first frame.len bytes of `data`
//!             ──▶ Err(error)    send the error, then close
//! ```
//!
//! Between the calls for one command the parser remembers which arguments it has and how far it looked for a line end, so a
//! command that arrives in a thousand pieces costs what it costs in one.
//! [`Parser::missing`] says how many bytes the argument under way still lacks: room for a large value can be made once.
//!
//! The parser accepts and rejects what Redis 7.0 does, oddities included: the two bytes behind an argument are skipped
//! without a look, and a NUL byte hides the rest of a header line (Redis searches lines with `strchr`), so that such a
//! line ends only when the size limit does.
//!
//! **Replies.** [`Encoder`] appends to a byte vector, in RESP2 or RESP3. It formats nothing: integers go through `itoa`,
//! everything else is copied.

use std::ops::{Index, RangeFrom};

use memchr::memchr2;

/// Longest header or inline command: Redis's `PROTO_INLINE_MAX_SIZE`.
pub const LINE_MAX: usize = 64 * 1024;

/// Where an argument lies in its buffer. 32 bits are enough: [`Parser::parse`] refuses to look at larger buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// The bytes from `start` up to `end`.
    ///
    /// # Panics
    /// If an offset is 4 GiB or more.
    #[must_use]
    pub fn new(start: usize, end: usize) -> Self {
        let offset = |at: usize| u32::try_from(at).expect("a buffer of commands is smaller than 4 GiB");
        Self { start: offset(start), end: offset(end) }
    }
}

/// The arguments of one command, its name first, as slices of the buffer they arrived in.
#[derive(Debug, Clone, Copy)]
pub struct Args<'a> {
    data: &'a [u8],
    spans: &'a [Span],
}

impl<'a> Args<'a> {
    /// Views `spans` of `data` as arguments.
    #[must_use]
    pub fn new(data: &'a [u8], spans: &'a [Span]) -> Self {
        Self { data, spans }
    }

    /// How many there are; 0 for an empty line.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there is nothing to run: an empty line, or `*0`.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Argument `i` for as long as the buffer lives. (Indexing is the same for as long as this view does.)
    ///
    /// # Panics
    /// If there are not that many.
    #[must_use]
    pub fn at(&self, i: usize) -> &'a [u8] {
        slice(self.data, self.spans[i])
    }

    /// All of them in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + Clone + use<'a> {
        let data = self.data;
        self.spans.iter().map(move |&span| slice(data, span))
    }

    /// Those from `range.start` on.
    #[must_use]
    pub fn from(&self, range: RangeFrom<usize>) -> Args<'a> {
        Args { data: self.data, spans: self.spans.get(range).unwrap_or_default() }
    }
}

impl Index<usize> for Args<'_> {
    type Output = [u8];

    fn index(&self, i: usize) -> &[u8] {
        self.at(i)
    }
}

fn slice(data: &[u8], span: Span) -> &[u8] {
    &data[span.start as usize..span.end as usize]
}

/// A command that has arrived whole.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// The command; empty if there is nothing to run.
    pub args: Args<'a>,
    /// How many bytes of the buffer it took.
    pub len: usize,
}

/// A request that cannot be followed any further. The connection ends after the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolError {
    /// The number behind `*` is none, or too large.
    MultibulkLength,
    /// The number behind `$` is none, or larger than a value may be.
    BulkLength,
    /// Something other than `$` began an argument.
    ExpectedBulk(u8),
    /// A line of digits that does not end.
    MultibulkCount,
    /// The same, for an argument.
    BulkCount,
    /// An inline command that does not end.
    InlineSize,
    /// An inline command whose quotes do not pair.
    Quotes,
}

impl ProtocolError {
    /// Appends the reply, as Redis words it.
    pub fn encode(self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"-ERR Protocol error: ");
        let text: &[u8] = match self {
            Self::MultibulkLength => b"invalid multibulk length",
            Self::BulkLength => b"invalid bulk length",
            Self::MultibulkCount => b"too big mbulk count string",
            Self::BulkCount => b"too big bulk count string",
            Self::InlineSize => b"too big inline request",
            Self::Quotes => b"unbalanced quotes in request",
            Self::ExpectedBulk(byte) => {
                let shown = if matches!(byte, b'\r' | b'\n') { b' ' } else { byte };
                out.extend_from_slice(b"expected '$', got '");
                out.push(shown);
                b"'"
            }
        };
        out.extend_from_slice(text);
        out.extend_from_slice(b"\r\n");
    }
}

/// Cuts commands out of a receive buffer.
#[derive(Debug)]
pub struct Parser {
    bulk_max: usize,
    /// The arguments found so far.
    spans: Vec<Span>,
    /// Unquoted arguments of an inline command, end to end.
    inline: Vec<u8>,
    state: State,
    /// Where parsing goes on, counted from the start of the command.
    at: usize,
    /// No line end lies before this offset.
    searched: usize,
    /// What the last call lacked.
    missing: usize,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Before the first byte of a command.
    Start,
    /// Before the `$` of an argument; so many are to come.
    Header(u32),
    /// Inside an argument of that length; so many are to come, it included.
    Body(u32, usize),
}

/// What a search for a line found.
enum Line {
    /// It ends here (at its `\r` or `\n`).
    End(usize),
    /// Not yet.
    Open,
    /// Not yet, and already too long.
    TooLong,
}

impl Parser {
    /// A parser for one connection. Arguments longer than `bulk_max` are refused.
    #[must_use]
    pub fn new(bulk_max: usize) -> Self {
        Self {
            bulk_max,
            spans: Vec::new(),
            inline: Vec::new(),
            state: State::Start,
            at: 0,
            searched: 0,
            missing: 1,
        }
    }

    /// Reads the command at the front of `data`, which must begin with the bytes of the last call if that gave `None`.
    ///
    /// # Errors
    /// When the bytes are no request. The parser must not be used after that.
    ///
    /// # Panics
    /// If `data` is 4 GiB or more: the owner of the buffer has a limit far below.
    pub fn parse<'a>(&'a mut self, data: &'a [u8]) -> Result<Option<Frame<'a>>, ProtocolError> {
        if matches!(self.state, State::Start) {
            self.spans.clear();
            if let Some(len) = whole(data, self.bulk_max, &mut self.spans) {
                return Ok(Some(Frame { args: Args::new(data, &self.spans), len }));
            }
            self.spans.clear();
            match data.first() {
                None => return Ok(self.incomplete(1)),
                Some(b'*') => {}
                Some(_) => return self.parse_inline(data),
            }
            let Some(count) =
                self.number(data, ProtocolError::MultibulkLength, ProtocolError::MultibulkCount)?
            else {
                return Ok(self.incomplete(1));
            };
            if count > i64::from(i32::MAX) {
                return Err(ProtocolError::MultibulkLength);
            }
            match u32::try_from(count) {
                Ok(count @ 1..) => self.state = State::Header(count),
                _ => return Ok(Some(self.finish(data, self.at))),
            }
        }
        loop {
            match self.state {
                State::Start => return Ok(Some(self.finish(data, self.at))),
                State::Header(left) => {
                    let start = self.at;
                    let (malformed, too_long) = (ProtocolError::BulkLength, ProtocolError::BulkCount);
                    let number = match data.get(start) {
                        Some(b'$') => self.number(data, malformed, too_long),
                        _ => self.unusual_number(data, malformed, too_long),
                    };
                    // Redis looks at the type only once the line is whole, and at the digits after that.
                    if !matches!(number, Ok(None) | Err(ProtocolError::BulkCount)) && data[start] != b'$' {
                        return Err(ProtocolError::ExpectedBulk(data[start]));
                    }
                    let Some(len) = number? else { return Ok(self.incomplete(1)) };
                    match usize::try_from(len) {
                        Ok(len) if len <= self.bulk_max => self.state = State::Body(left, len),
                        _ => return Err(ProtocolError::BulkLength),
                    }
                }
                State::Body(left, len) => {
                    let end = self.at + len;
                    if data.len() < end + 2 {
                        return Ok(self.incomplete(end + 2 - data.len()));
                    }
                    self.spans.push(Span::new(self.at, end));
                    self.at = end + 2;
                    self.searched = self.at;
                    self.state = if left == 1 { State::Start } else { State::Header(left - 1) };
                }
            }
        }
    }

    /// At least so many bytes are missing for the next command, after [`parse`](Self::parse) gave `None`.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.missing
    }

    fn incomplete<'a>(&mut self, missing: usize) -> Option<Frame<'a>> {
        self.missing = missing;
        None
    }

    fn finish<'a>(&'a mut self, data: &'a [u8], len: usize) -> Frame<'a> {
        (self.state, self.at, self.searched) = (State::Start, 0, 0);
        Frame { args: Args::new(data, &self.spans), len }
    }

    /// The number in the line at `self.at`, behind its first byte; steps behind the line. `None` while the line is open.
    #[inline]
    fn number(
        &mut self,
        data: &[u8],
        malformed: ProtocolError,
        too_long: ProtocolError,
    ) -> Result<Option<i64>, ProtocolError> {
        // The usual line: up to nine digits, then the line end, all here.
        let mut value = 0_i64;
        let mut end = self.at + 1;
        while let Some(digit) = data.get(end).map(|byte| byte.wrapping_sub(b'0')).filter(|&digit| digit <= 9)
        {
            value = value.wrapping_mul(10).wrapping_add(i64::from(digit));
            end += 1;
        }
        let digits = end - self.at - 1;
        let canonical = (1..=9).contains(&digits) && (digits == 1 || data[self.at + 1] != b'0');
        if canonical && data.len() > end + 1 && data[end] == b'\r' {
            self.at = end + 2;
            self.searched = self.at;
            return Ok(Some(value));
        }
        self.unusual_number(data, malformed, too_long)
    }

    /// The same for a line that is not whole, or not a plain number.
    #[cold]
    fn unusual_number(
        &mut self,
        data: &[u8],
        malformed: ProtocolError,
        too_long: ProtocolError,
    ) -> Result<Option<i64>, ProtocolError> {
        match self.line_end(data, b'\r') {
            // The byte behind `\r` belongs to the line, whatever it is.
            Line::End(end) if end + 1 < data.len() => {
                // A line without even a type byte: the type is the `\r` itself, and the caller complains about it.
                let digits = data.get(self.at + 1..end).unwrap_or_default();
                let value = parse_integer(digits).ok_or(malformed);
                self.at = end + 2;
                self.searched = self.at;
                value.map(Some)
            }
            Line::End(_) | Line::Open => Ok(None),
            Line::TooLong => Err(too_long),
        }
    }

    /// Looks for the end of the line at `self.at`, from where the last look stopped.
    fn line_end(&mut self, data: &[u8], end: u8) -> Line {
        let from = self.searched.max(self.at);
        match data.get(from..).and_then(|rest| memchr2(end, 0, rest)) {
            Some(found) if data[from + found] == end => Line::End(from + found),
            found => {
                self.searched = found.map_or(data.len(), |nul| from + nul);
                if data.len().saturating_sub(self.at) > LINE_MAX { Line::TooLong } else { Line::Open }
            }
        }
    }

    fn parse_inline<'a>(&'a mut self, data: &'a [u8]) -> Result<Option<Frame<'a>>, ProtocolError> {
        match self.line_end(data, b'\n') {
            Line::Open => Ok(self.incomplete(1)),
            Line::TooLong => Err(ProtocolError::InlineSize),
            Line::End(end) => {
                let line = &data[..end];
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                self.inline.clear();
                split_words(line, &mut self.inline, &mut self.spans).ok_or(ProtocolError::Quotes)?;
                self.searched = 0;
                Ok(Some(Frame { args: Args::new(&self.inline, &self.spans), len: end + 1 }))
            }
        }
    }
}

/// Reads the usual command: it is all here, and its numbers are plain. Gives its length. `None` says nothing but that: whoever
/// looks at it byte by byte will know why.
fn whole(data: &[u8], bulk_max: usize, spans: &mut Vec<Span>) -> Option<usize> {
    let (count, mut at) = plain_number(data, 0, b'*')?;
    if count == 0 {
        return None;
    }
    for _ in 0..count {
        let (len, start) = plain_number(data, at, b'$')?;
        let end = start + len;
        at = end + 2;
        if len > bulk_max || data.len() < at {
            return None;
        }
        spans.push(Span::new(start, end));
    }
    Some(at)
}

/// The number in the line at `at`, which begins with `kind`, and where the next one begins. The byte behind the `\r` belongs to the
/// line, whatever it is.
#[inline]
fn plain_number(data: &[u8], at: usize, kind: u8) -> Option<(usize, usize)> {
    let line = data.get(at..)?;
    if *line.first()? != kind {
        return None;
    }
    match line[1..] {
        [digit @ b'0'..=b'9', b'\r', _, ..] => Some((usize::from(digit - b'0'), at + 4)),
        [tens @ b'1'..=b'9', digit @ b'0'..=b'9', b'\r', _, ..] => {
            Some((usize::from(tens - b'0') * 10 + usize::from(digit - b'0'), at + 5))
        }
        // Nine digits are as many as a limit has, and cannot overflow.
        [b'1'..=b'9', ..] => {
            let digits = line[1..].iter().take(9).take_while(|byte| byte.is_ascii_digit()).count();
            let end = 1 + digits;
            if line.len() < end + 2 || line[end] != b'\r' {
                return None;
            }
            let number = line[1..end].iter().fold(0, |number, digit| number * 10 + usize::from(digit - b'0'));
            Some((number, at + end + 2))
        }
        _ => None,
    }
}

/// Splits an inline command into words, as `sdssplitargs` does: quotes, `\n \r \t \b \a \xHH` inside `"`, `\'` inside `'`.
fn split_words(line: &[u8], words: &mut Vec<u8>, spans: &mut Vec<Span>) -> Option<()> {
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        // `isspace` also counts the vertical tab.
        while let [0x0b, tail @ ..] = rest {
            rest = tail.trim_ascii_start();
        }
        if rest.is_empty() {
            return Some(());
        }
        let start = words.len();
        rest = split_word(rest, words)?;
        spans.push(Span::new(start, words.len()));
    }
}

/// Appends the word at the front of `rest`; gives what follows it, or `None` if its quotes do not pair.
fn split_word<'a>(mut rest: &'a [u8], words: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        rest = match rest {
            // Before a word, the vertical tab and the form feed are space; in it they are not.
            [] | [b' ' | b'\n' | b'\r' | b'\t', ..] => return Some(rest),
            [quote @ (b'"' | b'\''), tail @ ..] => {
                let after = split_quoted(*quote, tail, words)?;
                // A closing quote ends the word: a space must follow, or nothing.
                return after.first().is_none_or(|&byte| is_space(byte)).then_some(after);
            }
            [byte, tail @ ..] => {
                words.push(*byte);
                tail
            }
        };
    }
}

fn split_quoted<'a>(quote: u8, mut rest: &'a [u8], words: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        let (byte, tail) = match rest {
            [] => return None,
            [byte, tail @ ..] if *byte == quote => return Some(tail),
            [b'\\', b'\'', tail @ ..] if quote == b'\'' => (b'\'', tail),
            [b'\\', b'x', high, low, tail @ ..]
                if quote == b'"' && high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                (hex(*high) << 4 | hex(*low), tail)
            }
            [b'\\', escaped, tail @ ..] if quote == b'"' => (unescape(*escaped), tail),
            [byte, tail @ ..] => (*byte, tail),
        };
        words.push(byte);
        rest = tail;
    }
}

fn unescape(byte: u8) -> u8 {
    match byte {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'a' => 7,
        other => other,
    }
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

/// C's `isspace`.
pub(crate) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | 0x09..=0x0d)
}

/// Reads a signed integer the way Redis's `string2ll` does: no sign but `-`, no leading zeros, no spaces, no overflow.
#[must_use]
pub fn parse_integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        b"0" => return Some(0),
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || digits.len() > 19 || digits[0] == b'0' {
        return None;
    }
    let mut value = 0_u64;
    for &byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        // 19 digits stay below 10^19, and u64 holds more than that.
        value = value * 10 + u64::from(digit);
    }
    if negative { 0_i64.checked_sub_unsigned(value) } else { i64::try_from(value).ok() }
}

/// The version of the protocol a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// What every client starts with.
    #[default]
    Resp2,
    /// After `HELLO 3`: maps, sets and a null of their own.
    Resp3,
}

/// Appends replies to a byte vector.
#[derive(Debug)]
pub struct Encoder<'a> {
    out: &'a mut Vec<u8>,
    protocol: Protocol,
}

impl<'a> Encoder<'a> {
    /// Replies go behind what `out` holds.
    pub fn new(out: &'a mut Vec<u8>, protocol: Protocol) -> Self {
        Self { out, protocol }
    }

    /// The protocol the replies are written in.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Goes on in another protocol.
    pub fn switch(&mut self, protocol: Protocol) {
        self.protocol = protocol;
    }

    /// `+OK`
    pub fn ok(&mut self) {
        self.out.extend_from_slice(b"+OK\r\n");
    }

    /// A short text that is a status: `+PONG`.
    pub fn status(&mut self, text: &str) {
        self.line(b'+', text.as_bytes());
    }

    /// An error; `text` begins with its code, as in `ERR syntax error`. Line ends inside become spaces.
    pub fn error(&mut self, text: impl AsRef<[u8]>) {
        let start = self.out.len();
        self.line(b'-', text.as_ref());
        let end = self.out.len() - 2;
        for byte in &mut self.out[start..end] {
            if matches!(byte, b'\r' | b'\n') {
                *byte = b' ';
            }
        }
    }

    /// `:1`
    pub fn integer(&mut self, value: i64) {
        self.number(b':', value);
    }

    /// The number of something.
    pub fn count(&mut self, value: usize) {
        self.number(b':', value);
    }

    /// A string of bytes.
    pub fn bulk(&mut self, bytes: &[u8]) {
        // 24: a `$`, 20 digits at most, and the first line end; the second is the 2.
        self.out.reserve(bytes.len() + 24 + 2);
        self.number(b'$', bytes.len());
        self.out.extend_from_slice(bytes);
        self.out.extend_from_slice(b"\r\n");
    }

    /// A string of bytes that holds the number's digits.
    pub fn bulk_integer(&mut self, value: i64) {
        self.bulk(itoa::Buffer::new().format(value).as_bytes());
    }

    /// Text for people; RESP3 marks it as such.
    pub fn verbatim(&mut self, text: &[u8]) {
        match self.protocol {
            Protocol::Resp2 => self.bulk(text),
            Protocol::Resp3 => {
                self.number(b'=', text.len() + 4);
                self.out.extend_from_slice(b"txt:");
                self.out.extend_from_slice(text);
                self.out.extend_from_slice(b"\r\n");
            }
        }
    }

    /// Nothing.
    pub fn null(&mut self) {
        self.out.extend_from_slice(match self.protocol {
            Protocol::Resp2 => b"$-1\r\n",
            Protocol::Resp3 => b"_\r\n",
        });
    }

    /// The value, or nothing.
    pub fn bulk_or_null(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            Some(bytes) => self.bulk(bytes),
            None => self.null(),
        }
    }

    /// The head of an array; `len` replies follow.
    pub fn array(&mut self, len: usize) {
        self.number(b'*', len);
    }

    /// The head of a map; `len` pairs of replies follow. RESP2 has no maps: an array of twice that length.
    pub fn map(&mut self, len: usize) {
        match self.protocol {
            Protocol::Resp2 => self.number(b'*', 2 * len),
            Protocol::Resp3 => self.number(b'%', len),
        }
    }

    /// The head of a set; `len` replies follow. An array in RESP2.
    pub fn set(&mut self, len: usize) {
        self.number(if self.protocol == Protocol::Resp2 { b'*' } else { b'~' }, len);
    }

    /// Replies that are encoded already.
    pub fn raw(&mut self, replies: &[u8]) {
        self.out.extend_from_slice(replies);
    }

    /// Where the next reply will start in the vector.
    #[must_use]
    pub fn position(&self) -> usize {
        self.out.len()
    }

    /// Puts the head of an array before the replies written since `position`, once their number is known.
    pub fn array_since(&mut self, position: usize, len: usize) {
        let end = self.out.len();
        self.array(len);
        let head = self.out.len() - end;
        self.out[position..].rotate_right(head);
    }

    fn line(&mut self, kind: u8, text: &[u8]) {
        self.out.reserve(text.len() + 3);
        self.out.push(kind);
        self.out.extend_from_slice(text);
        self.out.extend_from_slice(b"\r\n");
    }

    fn number(&mut self, kind: u8, value: impl itoa::Integer) {
        let mut digits = itoa::Buffer::new();
        self.line(kind, digits.format(value).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BULK_MAX: usize = 1024;

    type Commands = Vec<Vec<Vec<u8>>>;

    /// Feeds `stream` in pieces, the way a connection does, and gives the commands and the error that ended it.
    fn commands(stream: &[u8], pieces: &[usize]) -> (Commands, Option<ProtocolError>) {
        let mut parser = Parser::new(BULK_MAX);
        let mut buffer = Vec::new();
        let mut commands = Commands::new();
        let mut fed = 0;
        let mut pieces = pieces.iter().copied().chain(std::iter::repeat(usize::MAX));
        while fed < stream.len() {
            let piece = pieces.next().expect("endless").clamp(1, stream.len() - fed);
            buffer.extend_from_slice(&stream[fed..fed + piece]);
            fed += piece;
            loop {
                match parser.parse(&buffer) {
                    Ok(None) => break,
                    Ok(Some(frame)) => {
                        if !frame.args.is_empty() {
                            commands.push(frame.args.iter().map(<[u8]>::to_vec).collect());
                        }
                        let len = frame.len;
                        buffer.drain(..len);
                    }
                    Err(error) => return (commands, Some(error)),
                }
            }
        }
        (commands, None)
    }

    fn error_of(stream: &[u8]) -> Option<ProtocolError> {
        commands(stream, &[]).1
    }

    #[test]
    fn requests_are_read_as_redis_reads_them() {
        let words = |words: &[&str]| words.iter().map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>();
        let read = |stream: &str| commands(stream.as_bytes(), &[]).0;
        assert_eq!(read("*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"), [words(&["GET", "k"])]);
        assert_eq!(read("*1\r\n$4\r\nPINGxx*1\r\n$0\r\n\r\n"), [words(&["PING"]), words(&[""])]);
        assert_eq!(read("*-5\r\n*0\r\n\r\n  \r\nPING\nGET  k\r\n"), [words(&["PING"]), words(&["GET", "k"])]);
        assert_eq!(read("*1\rxPING\r\n"), Commands::new());
        assert_eq!(read("GET \"a\\x41\\n\\q\" 'it\\'s' \"\"\r\n"), [words(&["GET", "aA\nq", "it's", ""])]);
        assert_eq!(read("foo\0bar\r\nPING\r\n"), Commands::new());
    }

    // A length that is read wrongly where the whole command is there would cut the stream elsewhere than byte after byte.
    #[test]
    fn a_command_read_in_one_go_is_the_one_read_in_pieces() {
        for len in [0, 1, 9, 10, 99, 100, 999, BULK_MAX] {
            let (head, body) = (format!("*2\r\n$3\r\nGET\r\n${len}\r\n"), vec![b'k'; len]);
            let stream = [head.as_bytes(), &body, b"\r\n*1\r\n$4\r\nPING\r\n"].concat();
            let whole = commands(&stream, &[]);
            assert_eq!(whole, (vec![vec![b"GET".to_vec(), body], vec![b"PING".to_vec()]], None));
            assert_eq!(commands(&stream, &vec![1; stream.len()]), whole);
        }
    }

    #[test]
    fn broken_requests_get_the_error_that_redis_gives() {
        use ProtocolError as E;
        for (stream, error) in [
            ("*x\r\n", E::MultibulkLength),
            ("*\r\n", E::MultibulkLength),
            ("*01\r\n", E::MultibulkLength),
            ("*2147483648\r\n", E::MultibulkLength),
            ("*1\r\nx\r\n", E::ExpectedBulk(b'x')),
            ("*1\r\n\r\n", E::ExpectedBulk(b'\r')),
            ("*1\rxPING\r\n", E::ExpectedBulk(b'P')),
            ("*1\r\n$\r\n", E::BulkLength),
            ("*1\r\n$-1\r\n", E::BulkLength),
            ("*1\r\n$1025\r\n", E::BulkLength),
            ("PING \"a\r\n", E::Quotes),
            ("PING \"a\"b\r\n", E::Quotes),
            ("PING 'a\r\n", E::Quotes),
        ] {
            assert_eq!(error_of(stream.as_bytes()), Some(error), "{stream:?}");
        }
        for (head, error) in [("*", E::MultibulkCount), ("*1\r\n$", E::BulkCount), ("x", E::InlineSize)] {
            let stream = [head.as_bytes(), &vec![b'1'; LINE_MAX]].concat();
            assert_eq!(error_of(&stream), Some(error));
        }
        let mut reply = Vec::new();
        E::ExpectedBulk(b'\r').encode(&mut reply);
        assert_eq!(reply, b"-ERR Protocol error: expected '$', got ' '\r\n");
    }

    #[test]
    fn an_endless_argument_says_how_much_is_missing() {
        let mut parser = Parser::new(BULK_MAX);
        assert!(parser.parse(b"*1\r\n$1000\r\nabc").expect("so far so good").is_none());
        assert_eq!(parser.missing(), 999);
    }

    #[test]
    fn integers_are_strict() {
        for (text, value) in [
            ("0", Some(0)),
            ("-0", None),
            ("+1", None),
            ("01", None),
            (" 1", None),
            ("", None),
            ("-", None),
            ("9223372036854775807", Some(i64::MAX)),
            ("9223372036854775808", None),
            ("-9223372036854775808", Some(i64::MIN)),
            ("-9223372036854775809", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(parse_integer(text.as_bytes()), value, "{text:?}");
        }
    }

    #[test]
    fn an_array_head_goes_before_replies_that_were_counted_late() {
        let mut out = b"+OK\r\n".to_vec();
        let mut encoder = Encoder::new(&mut out, Protocol::Resp2);
        let start = encoder.position();
        encoder.bulk(b"a");
        encoder.bulk(b"b");
        encoder.array_since(start, 2);
        assert_eq!(out, b"+OK\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n");
    }

    fn any_command() -> impl Strategy<Value = Vec<u8>> {
        let multibulk =
            prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..5).prop_map(|args| {
                let mut out = format!("*{}\r\n", args.len()).into_bytes();
                for arg in args {
                    out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
                    out.extend_from_slice(&arg);
                    out.extend_from_slice(b"\r\n");
                }
                out
            });
        let inline = "[a-z \"'\\\\x0-9]{0,12}\r\n".prop_map(String::into_bytes);
        let header = "[*$][0-9a-]{0,4}\r\n".prop_map(String::into_bytes);
        prop_oneof![8 => multibulk, 2 => inline, 1 => header]
    }

    proptest! {
        // What could go wrong: state kept across calls (arguments, searched prefix, position) disagrees with a fresh look, so
        // a command split at an unlucky byte reads differently.
        #[test]
        fn how_bytes_arrive_changes_nothing(
            stream in prop::collection::vec(any_command(), 1..6).prop_map(|parts| parts.concat()),
            pieces in prop::collection::vec(1..9_usize, 0..200),
        ) {
            let whole = commands(&stream, &[]);
            prop_assert_eq!(&commands(&stream, &pieces), &whole);
            prop_assert_eq!(&commands(&stream, &vec![1; stream.len()]), &whole);
        }
    }
}
