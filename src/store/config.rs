//! Images' configs, which have one form in all stores (OCI image specification, config.md; Docker's image specification
//! 1.2): the layers by their diff IDs, and the build steps.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};

use super::{ImageLayer, LAYERS_MAX, Step};
use crate::digest::DiffId;

/// More build steps than any engine writes.
const STEPS_MAX: usize = 10_000;
/// The most text of build steps that is kept of an image, in bytes.
const STEPS_TEXT_MAX: usize = 1 << 20;

/// What a config says, as far as stores ask.
#[derive(Debug)]
pub(super) struct Config {
    /// The build steps, first to last, as far as they are kept.
    pub(super) history: Vec<Step>,
    /// The layers, bottom first, or why they cannot be told.
    pub(super) layers: Result<Vec<ImageLayer>, String>,
}

impl Config {
    /// Reads a config.
    ///
    /// # Errors
    /// Why it is none.
    pub(super) fn parse(config: &[u8]) -> Result<Self, String> {
        let document: Document = serde_json::from_slice(config).map_err(|error| format!("no image config: {error}"))?;
        let diffs = document.rootfs.and_then(|rootfs| rootfs.diff_ids).unwrap_or_default();
        Ok(Self { history: document.history.unwrap_or_default().0, layers: diffs.layers() })
    }
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    rootfs: Option<RootFs>,
    #[serde(default)]
    history: Option<Steps>,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<DiffIds>,
}

#[derive(Deserialize)]
struct History {
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    created_by: Option<String>,
    #[serde(default)]
    empty_layer: Option<bool>,
}

/// The build steps, as far as they are kept. A list takes twenty times the memory of the text that it is written in, so
/// it is never held as a whole; neither is that of layers.
#[derive(Default)]
struct Steps(Vec<Step>);

/// The diff IDs of at most [`LAYERS_MAX`] layers, and how many there are.
#[derive(Default)]
struct DiffIds {
    kept: Vec<String>,
    count: usize,
}

impl DiffIds {
    /// The layers with their chain IDs, bottom first.
    fn layers(self) -> Result<Vec<ImageLayer>, String> {
        if self.count > LAYERS_MAX {
            return Err(format!("{} layers are more than {LAYERS_MAX}", self.count));
        }
        let mut layers: Vec<ImageLayer> = Vec::with_capacity(self.kept.len());
        for text in &self.kept {
            let no_id = |_| format!("{:?} is no diff ID", text.chars().take(80).collect::<String>());
            let diff: DiffId = text.parse().map_err(no_id)?;
            layers.push(ImageLayer::upon(layers.last(), diff));
        }
        Ok(layers)
    }
}

impl<'de> Deserialize<'de> for Steps {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_seq(StepsVisitor)
    }
}

impl<'de> Deserialize<'de> for DiffIds {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_seq(DiffIdsVisitor)
    }
}

struct StepsVisitor;

impl<'de> Visitor<'de> for StepsVisitor {
    type Value = Steps;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a list of build steps")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Steps, A::Error> {
        let (mut steps, mut text) = (Vec::new(), 0_usize);
        while let Some(step) = list.next_element::<History>()? {
            let step = Step {
                created: step.created.unwrap_or_default(),
                created_by: step.created_by.unwrap_or_default(),
                is_empty: step.empty_layer.unwrap_or_default(),
            };
            text = text.saturating_add(step.created.len()).saturating_add(step.created_by.len());
            if steps.len() == STEPS_MAX || text > STEPS_TEXT_MAX {
                let mut left_out = 1_usize;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    left_out = left_out.saturating_add(1);
                }
                let created_by = format!("({left_out} more steps, which config.json has)");
                steps.push(Step { created: String::new(), created_by, is_empty: true });
                break;
            }
            steps.push(step);
        }
        Ok(Steps(steps))
    }
}

struct DiffIdsVisitor;

impl<'de> Visitor<'de> for DiffIdsVisitor {
    type Value = DiffIds;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a list of diff IDs")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<DiffIds, A::Error> {
        let mut found = DiffIds::default();
        while found.kept.len() < LAYERS_MAX
            && let Some(diff) = list.next_element()?
        {
            found.kept.push(diff);
        }
        found.count = found.kept.len();
        while list.next_element::<IgnoredAny>()?.is_some() {
            found.count = found.count.saturating_add(1);
        }
        Ok(found)
    }
}
