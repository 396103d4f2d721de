//! `status`: what the view says of the store, and what it is told of the process that serves it, as JSON.
//!
//! The figures of the server change with each request. They are taken at most once a second: each content of the file
//! is a file of its own, and a second is as often as anyone looks.

use std::fmt::Debug;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use serde::Serialize;
use serde_json::Value;

use super::{Entry, Form, Owners, REMARKS_MAX, Shared, Snapshot, Text, facts};
use crate::meta::Timestamp;
use crate::store::{Catalogue, Image, Standing};

/// For how long the figures stay as they were taken.
const FIGURES_AGE: Duration = Duration::from_secs(1);

/// Who serves a view, as far as `status` tells of it.
pub trait Service: Debug + Send + Sync {
    /// What it has done and what it holds, by name.
    fn figures(&self) -> Value;
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

/// What `status` is told by others while the view is served.
#[derive(Debug, Default)]
pub(super) struct Told {
    service: OnceLock<Weak<dyn Service>>,
    /// Guards the figures while they are taken, which waits for no disk and no kernel.
    figures: Mutex<Option<(Instant, Figures)>>,
}

/// The figures of a moment.
#[derive(Debug, Clone, Serialize)]
struct Figures {
    /// When they were taken, in seconds since 1970; the file has the same time.
    taken_unix_seconds: u64,
    #[serde(flatten)]
    figures: Value,
}

impl Told {
    /// Has the figures of a service shown; the first one stays.
    pub(super) fn served_by(&self, service: Weak<dyn Service>) {
        let _first_stays = self.service.set(service);
    }

    /// The figures of this second.
    fn figures(&self) -> Option<Figures> {
        let service = self.service.get()?.upgrade()?;
        let mut known = self.figures.lock();
        if let Some((taken, figures)) = known.as_ref()
            && taken.elapsed() < FIGURES_AGE
        {
            return Some(figures.clone());
        }
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let figures = Figures { taken_unix_seconds: since_1970.as_secs(), figures: service.figures() };
        *known = Some((Instant::now(), figures.clone()));
        Some(figures)
    }
}

#[derive(Serialize)]
struct Status<'a> {
    version: &'static str,
    source: String,
    kind: String,
    driver: String,
    whiteouts: &'static str,
    uidmap: &'static str,
    images: Images,
    references: usize,
    layers: usize,
    containers: usize,
    /// Names that another store has, which was used later.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hidden: Vec<Hidden>,
    /// Those in force, by the kernel's names; `None` where the kernel does not tell.
    capabilities: Option<Vec<String>>,
    confinement: &'a [Measure],
    damage: Vec<Damage>,
    /// What is not shown as one might expect, though nothing is wrong, and how much more of that there is.
    remarks: Vec<Damage>,
    #[serde(skip_serializing_if = "is_none")]
    more_remarks: usize,
    /// Where someone serves the view.
    #[serde(skip_serializing_if = "Option::is_none")]
    figures: Option<Figures>,
}

fn is_none(count: &usize) -> bool {
    *count == 0
}

/// A store, and the state in which it is.
type State<'a> = (&'a Shared, Arc<Snapshot>);

/// The capabilities of the thread that asks; all that serve have the same.
fn capabilities() -> Option<Vec<String>> {
    let effective = rustix::thread::capabilities(None).ok()?.effective;
    Some(effective.iter_names().map(|(name, _)| format!("CAP_{name}")).collect())
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

/// A name that is not shown, and what is found by its ID.
#[derive(Serialize)]
struct Hidden {
    #[serde(flatten)]
    name: HiddenName,
    driver: String,
}

#[derive(Serialize)]
#[serde(untagged)]
enum HiddenName {
    Reference { reference: String, image: String },
    Container { name: String, container: String },
}

/// As [`crate::store::Damage`], damage or a remark.
#[derive(Serialize)]
struct Damage {
    object: String,
    reason: String,
    images: Vec<String>,
}

impl From<&crate::store::Damage> for Damage {
    fn from(damage: &crate::store::Damage) -> Self {
        Self {
            object: damage.what.clone(),
            reason: damage.why.clone(),
            images: damage.images.iter().map(ToString::to_string).collect(),
        }
    }
}

/// The file at the root.
pub(super) fn status(stores: &[Arc<Shared>], told: &Told) -> Entry {
    let states: Vec<_> = stores.iter().map(|store| (store.as_ref(), store.current())).collect();
    let newest = states.iter().map(|(_, state)| state.time).max().unwrap_or_default();
    let figures = told.figures();
    let taken = figures.as_ref().and_then(|figures| i64::try_from(figures.taken_unix_seconds).ok());
    let taken = taken.map(|seconds| Timestamp { seconds, nanoseconds: 0 });
    let time = taken.map_or(newest, |taken| taken.max(newest));
    Entry::text(Text::ready(content(&states, figures), time).momentary())
}

/// What there is of something in all catalogues.
fn sum(states: &[State<'_>], count: impl Fn(&Catalogue) -> usize) -> usize {
    states.iter().map(|(_, state)| count(&state.catalogue)).sum()
}

/// What all stores are called, each once.
fn names<'a>(stores: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in stores {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(", ")
}

fn content(states: &[State<'_>], figures: Option<Figures>) -> Vec<u8> {
    let catalogues = || states.iter().map(|(_, state)| &state.catalogue);
    let ids = |wanted: fn(&Image) -> bool| -> Vec<String> {
        let images = catalogues().flat_map(|catalogue| catalogue.images.values());
        images.filter(|image| wanted(image)).map(|image| image.id.to_string()).collect()
    };
    let hidden = |(store, state): &State<'_>| -> Vec<Hidden> {
        let driver = store.store.driver().to_owned();
        let references = state.hidden.iter();
        let references =
            references.map(|(name, id)| HiddenName::Reference { reference: name.to_string(), image: id.to_string() });
        let containers = state.hidden_containers.iter();
        let containers = containers.map(|(name, id)| HiddenName::Container {
            name: String::from_utf8_lossy(name.as_bytes()).into_owned(),
            container: id.to_string(),
        });
        references.chain(containers).map(|name| Hidden { name, driver: driver.clone() }).collect()
    };
    // What the options say is the same for all stores.
    let options = states.first().map(|(store, _)| &store.options);
    let remarks = || catalogues().flat_map(|catalogue| &catalogue.remarks);
    facts::json(&Status {
        version: env!("CARGO_PKG_VERSION"),
        source: options.map(|options| options.source.to_string_lossy().into_owned()).unwrap_or_default(),
        kind: names(states.iter().map(|(store, _)| store.store.kind())),
        driver: names(states.iter().map(|(store, _)| store.store.driver())),
        whiteouts: match options.map(|options| options.whiteouts).unwrap_or_default() {
            Form::Oci => "oci",
            Form::Stored => "stored",
        },
        uidmap: match options.map(|options| options.owners).unwrap_or_default() {
            Owners::Stored => "stored",
            Owners::Container => "container",
        },
        images: Images {
            total: sum(states, |catalogue| catalogue.images.len()),
            referenced: ids(|image| image.standing == Standing::Referenced).len(),
            dangling: ids(|image| image.standing == Standing::Dangling),
            intermediate: ids(|image| image.standing == Standing::Intermediate),
            damaged: ids(|image| !image.damage.is_empty()),
        },
        references: sum(states, |catalogue| catalogue.references.len()),
        layers: sum(states, |catalogue| catalogue.layers.len()),
        containers: sum(states, |catalogue| catalogue.containers.len()),
        hidden: states.iter().flat_map(hidden).collect(),
        capabilities: capabilities(),
        confinement: options.map(|options| options.confinement.as_slice()).unwrap_or_default(),
        damage: catalogues().flat_map(|catalogue| &catalogue.damage).map(Damage::from).collect(),
        remarks: remarks().take(REMARKS_MAX).map(Damage::from).collect(),
        more_remarks: remarks().skip(REMARKS_MAX).count(),
        figures,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Answers another figure at each look.
    #[derive(Debug, Default)]
    struct Restless(AtomicU64);

    impl Service for Restless {
        fn figures(&self) -> Value {
            serde_json::json!({ "looks": self.0.fetch_add(1, Ordering::Relaxed) })
        }
    }

    fn told_by(service: &Arc<Restless>) -> Told {
        let told = Told::default();
        let service: Weak<Restless> = Arc::downgrade(service);
        told.served_by(service);
        told
    }

    fn looks(told: &Told) -> Option<Value> {
        told.figures().map(|figures| serde_json::to_value(figures).unwrap()["looks"].take())
    }

    #[test]
    fn figures_stay_for_a_second() {
        let service = Arc::default();
        let told = told_by(&service);
        assert_eq!([looks(&told), looks(&told)], [Some(0.into()), Some(0.into())]);
        // As if a second had passed.
        if let Some((taken, _)) = told.figures.lock().as_mut() {
            *taken = taken.checked_sub(FIGURES_AGE).unwrap();
        }
        assert_eq!([looks(&told), looks(&told)], [Some(1.into()), Some(1.into())]);
    }

    #[test]
    fn without_a_server_there_are_no_figures() {
        assert_eq!(looks(&Told::default()), None);
        let told = told_by(&Arc::default());
        assert_eq!(looks(&told), None, "the server is gone");
    }
}
