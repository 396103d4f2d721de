//! Writes tar-split: the file in which engines keep the names that a layer's tar had.

use std::fmt::Write as _;
use std::io::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;

/// The lines for the entries of these names, in order.
pub fn lines(names: &[impl AsRef<[u8]>]) -> String {
    let (mut text, mut position) = (String::new(), 0);
    let header = STANDARD.encode([b'h'; 512]);
    for name in names {
        let name = match std::str::from_utf8(name.as_ref()) {
            Ok(name) => format!("\"name\":{}", serde_json::json!(name)),
            Err(_) => format!("\"name_raw\":\"{}\"", STANDARD.encode(name.as_ref())),
        };
        writeln!(text, "{{\"type\":2,\"payload\":\"{header}\",\"position\":{position}}}").unwrap();
        writeln!(text, "{{\"type\":1,{name},\"payload\":null,\"position\":{}}}", position + 1).unwrap();
        position += 2;
    }
    writeln!(text, "{{\"type\":2,\"payload\":\"{header}\",\"position\":{position}}}").unwrap();
    text
}

/// Compressed as engines do.
pub fn gzip(content: impl AsRef<[u8]>) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    packer.write_all(content.as_ref()).unwrap();
    packer.finish().unwrap()
}

/// The file for the entries of these names.
pub fn of(names: &[impl AsRef<[u8]>]) -> Vec<u8> {
    gzip(lines(names))
}
