//! HTTP/2 frames and header blocks, written byte by byte, so that an attack can send what no
//! client library would.

/// The first bytes that a client sends.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of the head of a frame.
const HEAD: usize = 9;

/// The longest payload of a frame that a server accepts by default.
pub(crate) const LONGEST: usize = 16 * 1024;

/// Types of frames.
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
    /// An unknown type. A server ignores such a frame.
    pub(crate) const UNKNOWN: u8 = 0xee;
}

/// Flags of frames.
pub(crate) mod flag {
    pub(crate) const NONE: u8 = 0;
    pub(crate) const ACK: u8 = 1;
    pub(crate) const END_STREAM: u8 = 1;
    pub(crate) const END_HEADERS: u8 = 4;
}

/// Identifiers of settings.
pub(crate) mod setting {
    pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
}

/// The error code of a cancelled stream.
pub(crate) const CANCEL: u32 = 8;

/// Appends one frame to `out`.
pub(crate) fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("payloads are short").to_be_bytes();
    out.extend_from_slice(&length[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Appends SETTINGS with `values`.
pub(crate) fn settings(out: &mut Vec<u8>, values: &[(u16, u32)]) {
    let payload: Vec<u8> = values
        .iter()
        .flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
        .collect();
    frame(out, kind::SETTINGS, flag::NONE, 0, &payload);
}

/// A frame that was read.
#[derive(Debug, PartialEq)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The first frame in `bytes`, and its length in bytes; `None` if the frame is incomplete.
    pub(crate) fn first(bytes: &'a [u8]) -> Option<(Self, usize)> {
        let head = bytes.get(..HEAD)?;
        let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
        let end = HEAD + number(&head[..3]) as usize;
        let payload = bytes.get(HEAD..end)?;
        let stream = number(&head[5..]) & 0x7fff_ffff;
        Some((Self { kind: head[3], flags: head[4], stream, payload }, end))
    }

    /// The settings that a frame of SETTINGS has.
    pub(crate) fn settings(&self) -> impl Iterator<Item = (u16, u32)> + use<'a> {
        self.payload.chunks_exact(6).map(|entry| {
            let name = u16::from_be_bytes([entry[0], entry[1]]);
            (name, u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]]))
        })
    }

    /// The number that a frame of WINDOW_UPDATE has.
    pub(crate) fn increment(&self) -> u32 {
        let bytes = self.payload.first_chunk().copied().unwrap_or_default();
        u32::from_be_bytes(bytes) & 0x7fff_ffff
    }
}

/// A block of headers in HPACK, without Huffman codes.
#[derive(Clone, Debug)]
pub(crate) struct Block(Vec<u8>);

impl Block {
    /// A block without headers.
    pub(crate) const fn empty() -> Self {
        Self(Vec::new())
    }

    /// A gRPC call of `path`.
    pub(crate) fn call(path: &str) -> Self {
        // From the static table: `:method POST`, `:scheme http`, and the name `:path`.
        let mut block = Self(vec![0x83, 0x86, 0x04]);
        block.text(path);
        block
            .with(":authority", "localhost")
            .with("content-type", "application/grpc")
            .with("te", "trailers")
    }

    /// Adds a header.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.0.push(0);
        self.text(name);
        self.text(value);
        self
    }

    /// Adds a header that the server also stores in the dynamic table of the connection.
    pub(crate) fn remembered(mut self, name: &str, value: &str) -> Self {
        self.0.push(0x40);
        self.text(name);
        self.text(value);
        self
    }

    /// Adds the header that was stored last, `times` times, each in one byte.
    pub(crate) fn repeated(mut self, times: usize) -> Self {
        self.0.resize(self.0.len() + times, 0x80 | 62);
        self
    }

    /// The encoded block.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn text(&mut self, text: &str) {
        // An integer with a prefix of seven bits.
        match u8::try_from(text.len()) {
            Ok(length) if length < 127 => self.0.push(length),
            _ => {
                self.0.push(127);
                let mut rest = text.len() - 127;
                while rest >= 128 {
                    self.0.push((rest % 128) as u8 | 128);
                    rest /= 128;
                }
                self.0.push(rest as u8);
            }
        }
        self.0.extend_from_slice(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_written_and_not_before_it_is_whole() {
        let mut bytes = Vec::new();
        settings(&mut bytes, &[(setting::INITIAL_WINDOW_SIZE, 70_000)]);
        frame(&mut bytes, kind::WINDOW_UPDATE, flag::NONE, 7, &9_u32.to_be_bytes());
        let (first, length) = Frame::first(&bytes).expect("it is whole");
        assert_eq!(first.settings().collect::<Vec<_>>(), [(4, 70_000)]);
        let (second, _) = Frame::first(&bytes[length..]).expect("it is whole");
        assert_eq!((second.kind, second.stream, second.increment()), (8, 7, 9));
        assert_eq!(Frame::first(&bytes[..length - 1]), None);
    }

    #[test]
    fn a_long_text_has_its_length_in_more_bytes() {
        let long = "a".repeat(127 + 1_337);
        let block = Block::empty().with("b", &long);
        assert_eq!(block.bytes()[..6], [0, 1, b'b', 127, 0xb9, 0x0a]);
        assert_eq!(block.bytes().len(), 6 + long.len());
        assert_eq!(Block::empty().repeated(3).bytes(), [0xbe; 3]);
    }
}
