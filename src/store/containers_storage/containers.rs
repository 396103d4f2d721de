//! The containers: their own layers, and the images that they are of.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::layers::{self, Fault, Keys};
use super::lists::ListedContainer;
use crate::digest::StorageLayerId;
use crate::meta::Meta;
use crate::store::reading::Told;
use crate::store::{Catalogue, Container, Damage};

/// The longest name that is shown, in bytes.
const NAME_MAX: usize = 4_096;

/// What it takes to find a container's layers.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    /// The list of containers, and that of layers, for messages.
    pub(super) lists: (String, String),
    pub(super) layers: &'a layers::Listed,
    /// That the list of layers has not all there is, and why.
    pub(super) unread: Option<&'a Damage>,
    pub(super) broken: &'a BTreeMap<StorageLayerId, Damage>,
    /// The layers of which it is not known what they lie upon.
    pub(super) severed: &'a BTreeMap<StorageLayerId, Damage>,
    pub(super) keys: &'a Keys,
    /// Whether the layers below the container's own are needed to tell what it sees.
    pub(super) is_union: bool,
}

impl Reader<'_> {
    /// Reads all containers into a catalogue that has layers and images; `list` is the state of their list.
    pub(super) fn read(&self, listed: &[ListedContainer], list: Option<&Meta>, catalogue: &mut Catalogue) {
        let mut told = Told::of(catalogue);
        for entry in listed {
            let mut container = Container {
                id: entry.id,
                name: entry.name.clone().filter(|name| is_name(name)),
                image: entry.image,
                changes: entry.layer.map(|layer| layer.cache_id()),
                init: None,
                parent: None,
                owners: entry.owners.clone().filter(|_| entry.layer.is_some_and(|own| self.is_shifted(own))),
                config_bytes: u64::try_from(entry.record.len()).ok(),
                stored: list.map(|list| list.modified).unwrap_or_default(),
                damage: Vec::new(),
            };
            let wrong = match entry.layer {
                Some(layer) => self.fill(layer, &mut container),
                None => Some(Damage::of(self.lists.0.clone(), format!("container {} has no layer", entry.id))),
            };
            if let Some(wrong) = wrong {
                container.damage.push(wrong.to_string());
                told.tell(wrong, catalogue);
            } else if let Some(top) = container.parent.filter(|_| self.is_union)
                && let Err(error) = catalogue.stack(&top)
            {
                // What is wrong with a layer is told already.
                container.damage.push(error.to_string());
            }
            catalogue.containers.insert(entry.id, Arc::new(container));
        }
    }

    /// Whether the owners of what lies below a container's own layer are shifted when it is mounted; otherwise there is a
    /// copy of the image's top layer in which they are, which has a map of its own.
    fn is_shifted(&self, own: StorageLayerId) -> bool {
        let Some(layer) = self.layers.get(&own) else { return false };
        let below = layer.parent.and_then(|parent| self.layers.get(&parent));
        !layer.is_mapped && below.is_some_and(|below| !below.is_mapped)
    }

    /// Finds the layers of a container; answers what is wrong with them.
    fn fill(&self, own: StorageLayerId, container: &mut Container) -> Option<Damage> {
        let in_layers =
            |why: String| Some(self.unread.cloned().unwrap_or_else(|| Damage::of(self.lists.1.clone(), why)));
        let Some(layer) = self.layers.get(&own) else {
            return in_layers(format!("layer {own} of container {} is not listed", container.id));
        };
        if let Some(damage) = self.broken.get(&own) {
            return Some(damage.clone());
        }
        let parent = layer.parent?;
        container.parent = self.keys.of(&parent);
        match layers::stack(self.layers, own) {
            Ok(_) => {}
            Err(Fault::Severed(lowest, _)) => return self.severed.get(&lowest).cloned(),
            Err(Fault::Other(why)) => return in_layers(why),
        }
        match container.parent {
            Some(_) => None,
            None => Some(Damage::of(format!("layer {parent}"), "its ID is another layer's chain ID")),
        }
    }
}

/// `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, podman's own pattern.
fn is_name(text: &str) -> bool {
    text.len() <= NAME_MAX
        && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}
