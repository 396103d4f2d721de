//! `repositories.json` and, of Docker 1.9 and older, `repositories-<driver>`: which image a reference names.
//!
//! ```text
//! {"Repositories": {"<repository>": {"<familiar reference, in full>": "sha256:<image ID>"}}}
//! {"Repositories": {"<familiar name>": {"<tag or digest>": "<image ID>"}}}
//! ```
//!
//! Docker 1.9 wrote the file in its place, so that a reader may see a part of it; then it is read again.
//!
//! The document is read entry by entry, and never held as a whole: one of a few megabytes can have a million entries.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::reading::{JSON_MAX, unread};
use super::{Catalogue, Damage, List};
use crate::digest::ImageId;
use crate::error::Result;
use crate::name::TreePath;
use crate::reference::Reference;
use crate::root::Root;

/// As many wrong entries are told one by one.
const WRONG_MAX: usize = 100;

/// How the entries of a document are written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Form {
    /// By Docker since 1.10: each with its whole reference.
    Whole,
    /// By those before it: each with a tag or digest in its repository.
    InRepository,
}

impl Form {
    fn reference(self, repository: &str, key: &str) -> Option<Reference> {
        match self {
            Self::Whole => Reference::parse(key).ok(),
            Self::InRepository => {
                // Digests hold a colon, tags cannot.
                let separator = if key.contains(':') { '@' } else { ':' };
                Reference::parse(&format!("{repository}{separator}{key}")).ok()
            }
        }
    }

    fn image(self, text: &str) -> Option<ImageId> {
        match self {
            Self::Whole => text.parse().ok(),
            Self::InRepository => ImageId::from_hex(text),
        }
    }
}

/// Reads all references; what cannot be one becomes damage. `None` where the file is missing.
///
/// # Errors
/// Transient ones: then the references are unknown, which is not none.
pub(super) fn read(
    root: &Root,
    file: &TreePath,
    form: Form,
    catalogue: &mut Catalogue,
) -> Result<Option<BTreeMap<Reference, ImageId>>> {
    let content = match root.read(file, JSON_MAX) {
        Ok(Some((content, meta))) => {
            catalogue.changed = meta.modified;
            content
        }
        Ok(None) => return Ok(None),
        Err(error) => {
            unread(catalogue, List::References, Damage::from_error(root, file, error)?);
            return Ok(Some(BTreeMap::new()));
        }
    };
    let damage = |why| Damage::of(root.shown(file), why);
    match parse(&content, form) {
        Ok((references, wrong)) => {
            catalogue.damage.extend(wrong.into_iter().map(damage));
            Ok(Some(references))
        }
        Err(why) => {
            unread(catalogue, List::References, damage(why));
            Ok(Some(BTreeMap::new()))
        }
    }
}

/// What a document says, and what is wrong with it; only what is wrong where it is not whole, since it says nothing then.
fn parse(content: &[u8], form: Form) -> std::result::Result<(BTreeMap<Reference, ImageId>, Vec<String>), String> {
    let mut found = Found { form, references: BTreeMap::new(), wrong: Vec::new(), untold: 0 };
    // As the engine reads it: bytes that are no UTF-8 spoil the name that they stand in, and no other.
    let text = String::from_utf8_lossy(content);
    let mut document = serde_json::Deserializer::from_str(&text);
    let part = Part { level: Level::Document, found: &mut found };
    if let Err(error) = part.deserialize(&mut document).and_then(|()| document.end()) {
        return Err(format!("not the list of references: {error}"));
    }
    if found.untold > 0 {
        found.wrong.push(format!("{} more of its entries are wrong", found.untold));
    }
    Ok((found.references, found.wrong))
}

struct Found {
    form: Form,
    references: BTreeMap<Reference, ImageId>,
    wrong: Vec<String>,
    untold: usize,
}

impl Found {
    fn wrong(&mut self, why: impl FnOnce() -> String) {
        if self.wrong.len() < WRONG_MAX {
            self.wrong.push(why());
        } else {
            self.untold = self.untold.saturating_add(1);
        }
    }

    fn entry(&mut self, repository: &str, key: &str, target: &Target) {
        let entry = || match self.form {
            Form::Whole => format!("{:?}", start_of(key)),
            Form::InRepository => format!("{:?} in {:?}", start_of(key), start_of(repository)),
        };
        let image = target.0.as_ref().and_then(|text| self.form.image(text));
        match (self.form.reference(repository, key), image) {
            (Some(reference), Some(id)) => match self.references.get(&reference) {
                Some(other) if *other != id => self.wrong(|| format!("names two images {reference}")),
                _ => {
                    self.references.insert(reference, id);
                }
            },
            (None, _) => {
                let why = format!("{} is no reference", entry());
                self.wrong(|| why);
            }
            (_, None) => {
                let why = format!("{} names no image ID", entry());
                self.wrong(|| why);
            }
        }
    }
}

/// As much of a text as a message needs.
fn start_of(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Where in the document an object stands.
#[derive(Debug)]
enum Level {
    Document,
    Repositories,
    Repository(String),
}

/// An object of the document. What stands in its place spoils nothing else, but for the document itself; `null` is an
/// empty one, as for the engine.
struct Part<'a> {
    level: Level,
    found: &'a mut Found,
}

impl Part<'_> {
    fn no_object<E: serde::de::Error>(self) -> std::result::Result<(), E> {
        match self.level {
            Level::Document => Err(E::custom("not an object")),
            Level::Repositories | Level::Repository(_) => {
                self.found.wrong(|| "holds something else than an object where references should be".to_owned());
                Ok(())
            }
        }
    }
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
                Level::Repository(repository) => found.entry(repository, &key, &map.next_value()?),
            }
        }
        Ok(())
    }

    fn visit_unit<E>(self) -> std::result::Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> std::result::Result<(), E> {
        self.no_object()
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> std::result::Result<(), E> {
        self.no_object()
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> std::result::Result<(), E> {
        self.no_object()
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> std::result::Result<(), E> {
        self.no_object()
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> std::result::Result<(), E> {
        self.no_object()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<(), A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        self.no_object()
    }
}

/// What a reference names: a text that should be an image ID, or something else, which is passed over.
struct Target(Option<String>);

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        from.deserialize_any(TargetVisitor)
    }
}

struct TargetVisitor;

impl<'de> Visitor<'de> for TargetVisitor {
    type Value = Target;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an image ID")
    }

    fn visit_str<E>(self, text: &str) -> std::result::Result<Target, E> {
        Ok(Target(Some(text.to_owned())))
    }

    fn visit_unit<E>(self) -> std::result::Result<Target, E> {
        Ok(Target(None))
    }

    fn visit_bool<E>(self, _: bool) -> std::result::Result<Target, E> {
        Ok(Target(None))
    }

    fn visit_i64<E>(self, _: i64) -> std::result::Result<Target, E> {
        Ok(Target(None))
    }

    fn visit_u64<E>(self, _: u64) -> std::result::Result<Target, E> {
        Ok(Target(None))
    }

    fn visit_f64<E>(self, _: f64) -> std::result::Result<Target, E> {
        Ok(Target(None))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Target, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Target(None))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Target, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Target(None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(content: &str) -> (Vec<String>, usize) {
        match parse(content.as_bytes(), Form::Whole) {
            Ok((references, wrong)) => (references.keys().map(ToString::to_string).collect(), wrong.len()),
            Err(_) => (Vec::new(), 1),
        }
    }

    #[test]
    fn what_is_no_reference_spoils_no_other() {
        let id = format!("\"sha256:{}\"", "a".repeat(64));
        let other = format!("\"sha256:{}\"", "b".repeat(64));
        for (repositories, expected, wrong) in [
            (format!("{{\"a\":{{\"a:1\":{id}}}}}"), vec!["a:1"], 0),
            (format!("{{\"a\":null,\"b\":{{\"b:1\":{id},\"b:2\":null}}}}"), vec!["b:1"], 1),
            (format!("{{\"a\":[{id}],\"b\":{{\"b:1\":{id}}},\"c\":7,\"d\":\"x\"}}"), vec!["b:1"], 3),
            (format!("{{\"a\":{{\"A:1\":{id},\"a:1\":{{\"x\":[]}},\"a:2\":{id}}}}}"), vec!["a:2"], 2),
            (format!("{{\"a\":{{\"a:1\":{id},\"docker.io/library/a:1\":{other}}}}}"), vec!["a:1"], 1),
            ("null".to_owned(), vec![], 0),
            ("[1,[2]]".to_owned(), vec![], 1),
        ] {
            let document = format!("{{\"Other\":[{{}}],\"Repositories\":{repositories}}}");
            let (found, count) = names(&document);
            assert_eq!((found.iter().map(String::as_str).collect(), count), (expected, wrong), "{document}");
        }
    }

    #[test]
    fn half_a_document_says_nothing() {
        let id = "a".repeat(64);
        let document = format!("{{\"Repositories\":{{\"a\":{{\"a:1\":\"sha256:{id}\"}}}}}}");
        assert_eq!(names(&document), (vec!["a:1".to_owned()], 0));
        for (length, _) in document.char_indices() {
            assert_eq!(names(document.get(..length).unwrap()), (vec![], 1), "{length}");
        }
        for wrong in ["[]", "7", "\"x\"", "{} {}"] {
            assert_eq!(names(wrong), (vec![], 1), "{wrong}");
        }
        assert_eq!(names("null"), (vec![], 0));
    }

    #[test]
    fn of_a_repository_tags_and_digests_are_told_apart() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let document = format!(
            "{{\"Images\":[1],\"Repositories\":{{\"ubuntu\":{{\"14.04\":\"{a}\",\"sha256:{b}\":\"{a}\"}},\
             \"reg.example:5000/app\":{{\"latest\":\"{b}\",\"x\":\"{a}0\",\"..\":\"{a}\"}},\"../x\":{{\"1\":\"{a}\"}},\
             \"empty\":null}}}}"
        );
        let (references, wrong) = parse(document.as_bytes(), Form::InRepository).unwrap();
        let names: Vec<_> = references.keys().map(ToString::to_string).collect();
        assert_eq!(names, ["reg.example:5000/app:latest", "ubuntu:14.04", &format!("ubuntu@sha256:{b}")]);
        assert_eq!(wrong.len(), 3, "{wrong:?}");
        assert!(wrong.contains(&"\"..\" in \"reg.example:5000/app\" is no reference".to_owned()), "{wrong:?}");
    }

    #[test]
    fn of_many_wrong_entries_the_rest_is_counted() {
        let entries: Vec<String> = (0..1_000).map(|n| format!("\"{n}!\":1")).collect();
        let document = format!("{{\"Repositories\":{{\"a\":{{{}}}}}}}", entries.join(","));
        let (_, wrong) = parse(document.as_bytes(), Form::Whole).unwrap();
        assert_eq!(wrong.len(), WRONG_MAX + 1);
        assert_eq!(wrong[WRONG_MAX], "900 more of its entries are wrong");
    }
}
