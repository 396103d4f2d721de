//! The small files that say what the store knows: a layer's facts, an image's history, what is damaged.

use serde::Serialize;

use crate::digest::{CacheId, ChainId, ImageId};
use crate::error::Result;
use crate::store::{Image, LayerRecord, Step, Store};

#[derive(Serialize)]
struct LayerFacts<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<usize>,
    diff_id: Option<String>,
    chain_id: String,
    parent: Option<String>,
    driver: &'a str,
    cache_id: Option<&'a str>,
    /// On the host.
    directory: Option<String>,
    size_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_by: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    images: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    damage: Option<String>,
}

/// A text, and whether all is in it that the store should have told.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) text: Vec<u8>,
    pub(super) is_whole: bool,
}

/// The facts of an image's or container's layer, which have its number and build step.
///
/// # Errors
/// Where the store could not be read for the moment.
pub(super) fn numbered_layer(
    store: &dyn Store,
    chain: &ChainId,
    record: Option<&LayerRecord>,
    index: usize,
    step: Option<&Step>,
) -> Result<Told> {
    let facts = LayerFacts {
        layer: Some(index),
        created: step.map(|step| step.created.as_str()),
        created_by: step.map(|step| step.created_by.as_str()),
        ..LayerFacts::of(store, chain, record)?
    };
    Ok(Told { text: json(&facts), is_whole: facts.size_bytes.is_some() })
}

/// The facts of a layer by itself, which have the images that use it.
///
/// # Errors
/// As [`numbered_layer`].
pub(super) fn layer(
    store: &dyn Store,
    chain: &ChainId,
    record: Option<&LayerRecord>,
    images: &[ImageId],
) -> Result<Vec<u8>> {
    let images = images.iter().map(ToString::to_string).collect();
    Ok(json(&LayerFacts { images: Some(images), ..LayerFacts::of(store, chain, record)? }))
}

impl<'a> LayerFacts<'a> {
    fn of(store: &'a dyn Store, chain: &ChainId, record: Option<&'a LayerRecord>) -> Result<Self> {
        let cache_id = record.and_then(|record| record.cache_id.as_ref());
        Ok(Self {
            layer: None,
            diff_id: record.and_then(|record| record.diff).map(|diff| diff.to_string()),
            chain_id: chain.to_string(),
            parent: record.and_then(|record| record.parent).map(|parent| parent.to_string()),
            driver: cache_id.map_or_else(|| store.driver(), |id| store.driver_of(id)),
            cache_id: cache_id.map(CacheId::as_str),
            directory: record
                .and_then(|record| record.directory.as_ref())
                .map(|path| path.to_string_lossy().into_owned()),
            size_bytes: size_bytes(store, record)?,
            created: None,
            created_by: None,
            images: None,
            damage: match record {
                Some(record) => record.damage.clone(),
                None => Some("the store does not list this layer".to_owned()),
            },
        })
    }
}

fn size_bytes(store: &dyn Store, record: Option<&LayerRecord>) -> Result<Option<u64>> {
    record.map_or(Ok(None), |record| store.size_bytes(record))
}

/// A document as readable JSON with a newline at its end.
pub(super) fn json(document: &impl Serialize) -> Vec<u8> {
    // Documents of this module hold strings and numbers only, which cannot fail to be written.
    let mut text = serde_json::to_vec_pretty(document).unwrap_or_default();
    text.push(b'\n');
    text
}

/// What is wrong, a line each.
pub(super) fn damage<'a>(sentences: impl IntoIterator<Item = &'a String>) -> Vec<u8> {
    sentences.into_iter().map(|sentence| format!("{sentence}\n")).collect::<String>().into_bytes()
}

/// A row per build step, first to last: the number of the layer that it made or `-`, that layer's size in bytes, when,
/// and the command. Layers that no step made, as in imported images, come last with an empty command.
///
/// # Errors
/// As [`numbered_layer`].
pub(super) fn history<'a>(
    store: &dyn Store,
    image: &Image,
    records: impl Iterator<Item = Option<&'a LayerRecord>>,
) -> Result<Told> {
    let sizes = records.map(|record| size_bytes(store, record)).collect::<Result<Vec<_>>>()?;
    let size =
        |index: usize| sizes.get(index).copied().flatten().map_or_else(|| "-".to_owned(), |size| size.to_string());
    let row = |layer: &str, size: &str, created: &str, command: &str| {
        let created = if created.is_empty() { "-".to_owned() } else { one_line(created) };
        let row = format!("{layer:<5}  {size:>12}  {created:<30}  {}", one_line(command));
        format!("{}\n", row.trim_end())
    };
    let mut text = row("LAYER", "SIZE", "CREATED", "COMMAND");
    let mut made = 0_usize;
    for step in &image.history {
        if step.is_empty {
            text.push_str(&row("-", "-", &step.created, &step.created_by));
        } else {
            text.push_str(&row(&made.to_string(), &size(made), &step.created, &step.created_by));
            made = made.saturating_add(1);
        }
    }
    for index in made..image.layers.len() {
        text.push_str(&row(&index.to_string(), &size(index), "", ""));
    }
    Ok(Told { text: text.into_bytes(), is_whole: sizes.iter().all(Option::is_some) })
}

/// Text that can neither end a row nor steer a terminal: control characters are escaped, and the backslash with them.
fn one_line(text: &str) -> String {
    let escaped = |c: char| if c.is_control() || c == '\\' { c.escape_debug().to_string() } else { c.to_string() };
    text.chars().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn commands_stay_as_they_were_typed() {
        assert_eq!(one_line(r#"CMD ["sh" 'x']"#), r#"CMD ["sh" 'x']"#);
        assert_eq!(one_line("a\nforged row\x1b[31m\\"), r"a\nforged row\u{1b}[31m\\");
    }
}
