//! `repositories.json`: which image a reference names.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{JSON_MAX, path};
use crate::digest::ImageId;
use crate::reference::Reference;
use crate::root::Root;
use crate::store::Damage;

pub(super) const FILE: &str = "repositories.json";

/// Outer key: the repository; inner key: the full familiar reference; value: the image ID.
#[derive(Deserialize)]
struct Repositories {
    #[serde(rename = "Repositories", default)]
    repositories: BTreeMap<String, BTreeMap<String, String>>,
}

/// Reads all references; what cannot be one becomes damage. A missing file means none.
pub(super) fn read(image: &Root, damage: &mut Vec<Damage>) -> BTreeMap<Reference, ImageId> {
    let file = path(FILE);
    let content = match image.read(&file, JSON_MAX) {
        Ok(Some(content)) => content,
        Ok(None) => return BTreeMap::new(),
        Err(error) => {
            damage.push(Damage::from_error(image, &file, error));
            return BTreeMap::new();
        }
    };
    let all: Repositories = match serde_json::from_slice(&content) {
        Ok(all) => all,
        Err(error) => {
            damage.push(Damage::of(image.shown(&file), format!("not the list of references: {error}")));
            return BTreeMap::new();
        }
    };
    let mut references = BTreeMap::new();
    for (key, value) in all.repositories.into_values().flatten() {
        match (Reference::parse(&key), value.parse::<ImageId>()) {
            (Ok(reference), Ok(id)) => match references.get(&reference) {
                Some(other) if *other != id => {
                    damage.push(Damage::of(image.shown(&file), format!("names two images {reference}")));
                }
                _ => {
                    references.insert(reference, id);
                }
            },
            (Err(_), _) => damage.push(Damage::of(image.shown(&file), format!("{key:?} is no reference"))),
            (_, Err(_)) => damage.push(Damage::of(image.shown(&file), format!("{key:?} names no image ID"))),
        }
    }
    references
}
