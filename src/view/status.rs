//! `status`: what the view says of the store, as JSON.

use std::sync::Arc;

use serde::Serialize;

use super::{Entry, Form, Shared, Snapshot, Text, facts};
use crate::store::{Image, Standing};

#[derive(Serialize)]
struct Status<'a> {
    version: &'static str,
    source: String,
    kind: &'static str,
    driver: String,
    whiteouts: &'static str,
    images: Images,
    references: usize,
    layers: usize,
    containers: usize,
    confinement: &'a [Measure],
    damage: Vec<Damage>,
}

/// One of the measures by which the process that reads the store is confined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Measure {
    /// Its name.
    pub step: &'static str,
    /// Whether it is in force.
    pub state: Force,
    /// Why it is not, and what that means; or in what it falls short.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Whether a measure is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Force {
    /// It is.
    #[serde(rename = "in force")]
    Full,
    /// It is not.
    #[serde(rename = "not in force")]
    None,
}

#[derive(Serialize)]
struct Images {
    total: usize,
    referenced: usize,
    /// IDs, as all lists here.
    dangling: Vec<String>,
    intermediate: Vec<String>,
    damaged: Vec<String>,
}

#[derive(Serialize)]
struct Damage {
    object: String,
    reason: String,
    images: Vec<String>,
}

/// The file at the root.
pub(super) fn status(shared: &Arc<Shared>) -> Entry {
    let snapshot = shared.current();
    Entry::text(Text::ready(content(shared, &snapshot), snapshot.time).momentary())
}

fn content(shared: &Shared, snapshot: &Snapshot) -> Vec<u8> {
    let catalogue = &snapshot.catalogue;
    let ids = |wanted: fn(&Image) -> bool| -> Vec<String> {
        catalogue.images.values().filter(|image| wanted(image)).map(|image| image.id.to_string()).collect()
    };
    let damage = catalogue.damage.iter().map(|damage| Damage {
        object: damage.what.clone(),
        reason: damage.why.clone(),
        images: damage.images.iter().map(ToString::to_string).collect(),
    });
    facts::json(&Status {
        version: env!("CARGO_PKG_VERSION"),
        source: shared.options.source.to_string_lossy().into_owned(),
        kind: shared.store.kind(),
        driver: shared.store.driver().to_owned(),
        whiteouts: match shared.options.whiteouts {
            Form::Oci => "oci",
            Form::Stored => "stored",
        },
        images: Images {
            total: catalogue.images.len(),
            referenced: ids(|image| image.standing == Standing::Referenced).len(),
            dangling: ids(|image| image.standing == Standing::Dangling),
            intermediate: ids(|image| image.standing == Standing::Intermediate),
            damaged: ids(|image| !image.damage.is_empty()),
        },
        references: catalogue.references.len(),
        layers: catalogue.layers.len(),
        containers: catalogue.containers.len(),
        confinement: &shared.options.confinement,
        damage: damage.collect(),
    })
}
