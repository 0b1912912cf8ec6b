//! The digests of indexers' keys, in the policy file and in files that it names.

use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::error::{Place, PolicyError};
use crate::outside::Outside;

/// Texts that scripts hash by mistake when there is no key, and a description of each.
///
/// Such a digest would admit a caller with an empty key, or no header can carry its key.
const NO_KEYS: [(&str, &str); 6] = [
    ("", "the empty text, as of a variable that is not set"),
    ("\n", "a lone newline, as `echo` prints it for a variable that is not set"),
    ("\r\n", "a lone line break"),
    (" ", "a lone space"),
    (" \n", "a space and a newline"),
    ("\t", "a lone tab"),
];

/// The SHA-256 of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Digest(pub(crate) [u8; 32]);

impl Digest {
    /// Reads 64 hex digits.
    ///
    /// # Errors
    ///
    /// What is wrong with the text. The message does not contain the text: it may be a key.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let mut digest = [0; 32];
        hex::decode_to_slice(text, &mut digest)
            .map_err(|_| "it is not 64 hex digits: give the SHA-256 of the key, not the key")?;
        let of_no_key =
            |(text, _): &&(&str, &str)| <[u8; 32]>::from(Sha256::digest(text)) == digest;
        match NO_KEYS.iter().find(of_no_key) {
            None => Ok(Self(digest)),
            Some((_, what)) => Err(format!(
                "it is the SHA-256 of {what}, and no key: whoever made it hashed nothing"
            )),
        }
    }
}

/// Reads the file at `path`, one digest on each line. Blank lines and text after a `#` are ignored.
/// `place` is where the policy names the file.
///
/// # Errors
///
/// The file cannot be read or has no digest: the error has the place `place`. A line is invalid: the
/// error has the place of the line.
pub(crate) fn read_digests(
    outside: &mut dyn Outside,
    path: &Path,
    place: impl Fn() -> Place,
) -> Result<Vec<(Digest, Place)>, PolicyError> {
    let shown = path.display();
    let wrong = |problem: String| PolicyError::new(place(), problem);
    let contents =
        outside.read(path).map_err(|error| wrong(format!("key_sha256_file {shown}: {error}")))?;
    let text = String::from_utf8(contents)
        .map_err(|_| wrong(format!("key_sha256_file {shown}: it is not text")))?;
    let mut digests = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let said = line.split('#').next().unwrap_or_default();
        if said.trim().is_empty() {
            continue;
        }
        let column = said.chars().take_while(|char| char.is_whitespace()).count() + 1;
        let place = Place { file: path.to_owned(), line: number + 1, column };
        match Digest::read(said.trim()) {
            Ok(digest) => digests.push((digest, place)),
            Err(problem) => return Err(PolicyError::new(place, problem)),
        }
    }
    if digests.is_empty() {
        return Err(wrong(format!("key_sha256_file {shown}: there is no digest in it")));
    }
    Ok(digests)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::outside::SettingError;

    #[test]
    fn the_digest_of_the_empty_text_is_refused_and_the_message_says_what_was_hashed() {
        let refused = |text: &str| Digest::read(text).unwrap_err();
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert!(refused(empty).contains("the empty text"), "{}", refused(empty));
        assert!(refused(&empty.to_uppercase()).contains("the empty text"));
        let newline = "01ba4719c80b6fe911b091a7c05124b64eeece964e09c058ef8f9805daca546b";
        assert!(refused(newline).contains("a lone newline"), "{}", refused(newline));
        for (text, what) in NO_KEYS {
            assert!(refused(&hex::encode(Sha256::digest(text))).contains(what), "{text:?}");
        }
        assert!(Digest::read(&hex::encode(Sha256::digest("west"))).is_ok());
    }

    #[test]
    fn a_file_of_digests_has_one_per_line_and_its_error_names_the_place() {
        let place = Place { file: "policy.toml".into(), line: 7, column: 3 };
        struct One<'t>(&'t str);
        impl Outside for One<'_> {
            fn read(&mut self, _: &Path) -> io::Result<Vec<u8>> {
                Ok(self.0.as_bytes().to_vec())
            }

            fn set(&mut self, _: &str, _: toml::Value, _: Place) -> Result<(), SettingError> {
                Ok(())
            }
        }
        let read = |text: &str| read_digests(&mut One(text), Path::new("keys"), || place.clone());
        let (one, two) = ("ab".repeat(32), "cd".repeat(32));
        let found = read(&format!("# of the west\n\n{one}\n  {two}  # the new one\r\n")).unwrap();
        let lines: Vec<_> = found.iter().map(|(_, place)| (place.line, place.column)).collect();
        assert_eq!(lines, [(3, 1), (4, 3)]);
        let error = read(&format!("{one}\nhunter2\n")).unwrap_err();
        assert!(error.to_string().starts_with("keys:2:1: it is not 64 hex digits"), "{error}");
        assert!(!error.to_string().contains("hunter2"));
        let error = read("# nothing\n").unwrap_err();
        assert!(error.to_string().starts_with("policy.toml:7:3: key_sha256_file keys"), "{error}");
    }
}
