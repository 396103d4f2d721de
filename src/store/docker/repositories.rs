//! `repositories.json`: which image a reference names.
//!
//! ```text
//! {"Repositories": {"<repository>": {"<familiar reference, in full>": "<image ID>"}}}
//! ```

use std::collections::BTreeMap;

use serde_json::Value;

use super::{JSON_MAX, path};
use crate::digest::ImageId;
use crate::error::Result;
use crate::reference::Reference;
use crate::root::Root;
use crate::store::Damage;

pub(super) const FILE: &str = "repositories.json";

/// Reads all references; what cannot be one becomes damage. A missing file means none.
///
/// # Errors
/// Transient ones: then the references are unknown, which is not none.
pub(super) fn read(image: &Root, damage: &mut Vec<Damage>) -> Result<BTreeMap<Reference, ImageId>> {
    let file = path(FILE);
    let content = match image.read(&file, JSON_MAX) {
        Ok(content) => content.unwrap_or_else(|| b"{}".to_vec()),
        Err(error) => {
            damage.push(Damage::from_error(image, &file, error)?);
            return Ok(BTreeMap::new());
        }
    };
    let mut wrong = |why: String| damage.push(Damage::of(image.shown(&file), why));
    // As the engine reads it: bytes that are no UTF-8 spoil the name that they stand in, and no other.
    let all: Value = match serde_json::from_str(&String::from_utf8_lossy(&content)) {
        Ok(all) => all,
        Err(error) => {
            wrong(format!("not the list of references: {error}"));
            return Ok(BTreeMap::new());
        }
    };
    let mut references = BTreeMap::new();
    for (key, value) in entries(all.get("Repositories")).flat_map(|(_, repository)| entries(Some(repository))) {
        match (Reference::parse(key), value.as_str().and_then(|text| text.parse::<ImageId>().ok())) {
            (Ok(reference), Some(id)) => match references.get(&reference) {
                Some(other) if *other != id => wrong(format!("names two images {reference}")),
                _ => {
                    references.insert(reference, id);
                }
            },
            (Err(_), _) => wrong(format!("{key:?} is no reference")),
            (_, None) => wrong(format!("{key:?} names no image ID")),
        }
    }
    Ok(references)
}

/// An object's entries; none for anything else, as the engine takes `null`.
fn entries(value: Option<&Value>) -> impl Iterator<Item = (&String, &Value)> {
    value.and_then(Value::as_object).into_iter().flatten()
}
