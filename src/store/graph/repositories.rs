//! `repositories-<driver>`: which image a tag or digest of a repository names.
//!
//! ```text
//! {"Repositories": {"<familiar name>": {"<tag or digest>": "<image ID>"}}}
//! ```
//!
//! The engine writes the file in its place, so that a reader may see a part of it; then it is read again.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::images::JSON_MAX;
use crate::digest::ImageId;
use crate::error::Result;
use crate::name::TreePath;
use crate::reference::Reference;
use crate::root::Root;
use crate::store::reading::unread;
use crate::store::{Catalogue, Damage, List};

/// As many wrong entries are told one by one.
const WRONG_MAX: usize = 100;

/// Reads all references; what cannot be one becomes damage.
///
/// # Errors
/// Transient ones.
pub(super) fn read(
    data_root: &Root,
    file: &TreePath,
    catalogue: &mut Catalogue,
) -> Result<BTreeMap<Reference, ImageId>> {
    let content = match data_root.read(file, JSON_MAX) {
        Ok(Some((content, meta))) => {
            catalogue.changed = meta.modified;
            content
        }
        Ok(None) => {
            catalogue.damage.push(Damage::of(data_root.shown(file), "missing, so no image has a name"));
            return Ok(BTreeMap::new());
        }
        Err(error) => {
            unread(catalogue, List::References, Damage::from_error(data_root, file, error)?);
            return Ok(BTreeMap::new());
        }
    };
    match parse(&content) {
        Ok(found) => {
            catalogue.damage.extend(found.wrong.into_iter().map(|why| Damage::of(data_root.shown(file), why)));
            Ok(found.references)
        }
        Err(why) => {
            unread(catalogue, List::References, Damage::of(data_root.shown(file), why));
            Ok(BTreeMap::new())
        }
    }
}

/// What a document says, and what is wrong with it; only what is wrong where it is not whole.
fn parse(content: &[u8]) -> std::result::Result<Found, String> {
    let text = String::from_utf8_lossy(content);
    let mut document = serde_json::Deserializer::from_str(&text);
    let mut found = Found::default();
    let whole = Part { level: Level::Document, found: &mut found }.deserialize(&mut document);
    match whole.and_then(|()| document.end()) {
        Ok(()) => Ok(found),
        Err(error) => Err(format!("not the list of references: {error}")),
    }
}

#[derive(Debug, Default)]
struct Found {
    references: BTreeMap<Reference, ImageId>,
    wrong: Vec<String>,
}

impl Found {
    fn entry(&mut self, repository: &str, version: &str, target: &Target) {
        // Digests hold a colon, tags cannot.
        let separator = if version.contains(':') { '@' } else { ':' };
        let reference = Reference::parse(&format!("{repository}{separator}{version}"));
        let why = match (reference, target.0) {
            (Ok(reference), Some(id)) => match self.references.insert(reference, id) {
                Some(other) if other != id => format!("names two images {}", start_of(repository)),
                Some(_) | None => return,
            },
            (Err(_), _) => format!("{:?} in {:?} is no reference", start_of(version), start_of(repository)),
            (_, None) => format!("{:?} in {:?} names no image ID", start_of(version), start_of(repository)),
        };
        if self.wrong.len() < WRONG_MAX {
            self.wrong.push(why);
        }
    }
}

fn start_of(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Where in the document an object stands.
#[derive(Debug, Clone)]
enum Level {
    Document,
    Repositories,
    Repository(String),
}

/// An object of the document, which is read entry by entry and never held as a whole; `null` is an empty one.
struct Part<'a> {
    level: Level,
    found: &'a mut Found,
}

impl<'de> DeserializeSeed<'de> for Part<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> std::result::Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Part<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            let found = &mut *self.found;
            match &self.level {
                Level::Document if key == "Repositories" => {
                    map.next_value_seed(Part { level: Level::Repositories, found })?;
                }
                Level::Document => drop(map.next_value::<IgnoredAny>()?),
                Level::Repositories => map.next_value_seed(Part { level: Level::Repository(key), found })?,
                Level::Repository(repository) => {
                    let target = map.next_value()?;
                    found.entry(repository, &key, &target);
                }
            }
        }
        Ok(())
    }

    fn visit_unit<E>(self) -> std::result::Result<(), E> {
        Ok(())
    }
}

/// The image that a tag names, where it is an ID.
struct Target(Option<ImageId>);

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let text = Option::<String>::deserialize(from)?.unwrap_or_default();
        Ok(Self(ImageId::from_hex(&text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_digests_are_told_apart() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let document = format!(
            "{{\"Images\":[1],\"Repositories\":{{\"ubuntu\":{{\"14.04\":\"{a}\",\"sha256:{b}\":\"{a}\"}},\
             \"reg.example:5000/app\":{{\"latest\":\"{b}\",\"x\":\"{a}0\",\"..\":\"{a}\"}},\"../x\":{{\"1\":\"{a}\"}},\
             \"empty\":null}}}}"
        );
        let found = parse(document.as_bytes()).unwrap();
        let names: Vec<_> = found.references.keys().map(ToString::to_string).collect();
        assert_eq!(names, ["reg.example:5000/app:latest", "ubuntu:14.04", &format!("ubuntu@sha256:{b}")]);
        assert_eq!(found.wrong.len(), 3, "{:?}", found.wrong);
    }

    #[test]
    fn half_a_document_says_nothing() {
        let document = format!("{{\"Repositories\":{{\"a\":{{\"1\":\"{}\"}}}}}}", "a".repeat(64));
        assert_eq!(parse(document.as_bytes()).unwrap().references.len(), 1);
        for (length, _) in document.char_indices() {
            assert!(parse(document.get(..length).unwrap().as_bytes()).is_err(), "{length}");
        }
        for wrong in ["[]", "7", "{\"Repositories\":[]}", "{\"Repositories\":{\"a\":{\"1\":{}}}}"] {
            assert!(parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
