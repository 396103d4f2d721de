//! How containerd writes values into its databases: Go's variable-length integers and binary times, and protobuf's `Any`.

use crate::meta::Timestamp;

/// Seconds from the first day of the year 1, where Go's times start, to 1970.
const TO_UNIX: i64 = 62_135_596_800;
/// Bits of a number in each byte.
const GROUP: u32 = 7;

/// A number as Go's `PutUvarint` writes it, which fills the value.
pub(super) fn unsigned(value: &[u8]) -> Option<u64> {
    let (number, rest) = leading(value)?;
    rest.is_empty().then_some(number)
}

/// A number as Go's `PutVarint` writes it: the sign in the lowest bit. Negative ones are none of a size.
pub(super) fn size(value: &[u8]) -> Option<u64> {
    unsigned(value).filter(|number| number & 1 == 0).map(|number| number >> 1)
}

/// The number at the start of some bytes, and what follows it.
fn leading(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0_u64;
    for (index, byte) in bytes.iter().enumerate() {
        let group = u64::from(byte & 0x7f);
        let shift = u32::try_from(index).ok()?.checked_mul(GROUP)?;
        let shifted = group.checked_shl(shift)?;
        if shifted >> shift != group {
            return None;
        }
        number |= shifted;
        if byte & 0x80 == 0 {
            return Some((number, bytes.get(index.checked_add(1)?..)?));
        }
    }
    None
}

/// A time as Go's `Time.MarshalBinary` writes it: version, seconds since the year 1, nanoseconds, and the zone, which
/// says nothing of the moment.
pub(super) fn time(value: &[u8]) -> Option<Timestamp> {
    let (version, rest) = value.split_first()?;
    let (seconds, rest) = rest.split_first_chunk()?;
    let (nanoseconds, zone) = rest.split_first_chunk()?;
    let zone_bytes = match version {
        1 => 2,
        2 => 3,
        _ => return None,
    };
    let nanoseconds = u32::from_be_bytes(*nanoseconds);
    let is_time = zone.len() == zone_bytes && nanoseconds < 1_000_000_000;
    is_time.then_some(Timestamp { seconds: i64::from_be_bytes(*seconds).checked_sub(TO_UNIX)?, nanoseconds })
}

/// What a protobuf `Any` holds: its field 2. Field 1 names the type; there are no others.
pub(super) fn any(message: &[u8]) -> Option<&[u8]> {
    /// The wire type of bytes with their length before them.
    const BYTES: u64 = 2;
    let (mut rest, mut held) = (message, None);
    while !rest.is_empty() {
        let (key, behind) = leading(rest)?;
        let (length, behind) = leading(behind)?;
        if key & 7 != BYTES {
            return None;
        }
        let (field, behind) = behind.split_at_checked(usize::try_from(length).ok()?)?;
        if key >> 3 == 2 {
            held = Some(field);
        }
        rest = behind;
    }
    held
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (bytes, number) in [
            (&[0][..], Some(0)),
            (&[0x7f], Some(127)),
            (&[0x80, 1], Some(128)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], Some(u64::MAX)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], None),
            (&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1], None),
            (&[], None),
            (&[0x80], None),
            (&[1, 1], None),
        ] {
            assert_eq!(unsigned(bytes), number, "{bytes:?}");
        }
        assert_eq!([size(&[6]), size(&[8]), size(&[5])], [Some(3), Some(4), None]);
    }

    #[test]
    fn times() {
        // 2026-01-02T03:04:05.5Z and the same moment at +01:00, as Go writes them.
        let seconds = (1_767_323_045 + TO_UNIX).to_be_bytes();
        let nanoseconds = 500_000_000_u32.to_be_bytes();
        let written = |version: u8, zone: &[u8]| [&[version][..], &seconds, &nanoseconds, zone].concat();
        let read = Some(Timestamp { seconds: 1_767_323_045, nanoseconds: 500_000_000 });
        assert_eq!(time(&written(1, &[0xff, 0xff])), read);
        assert_eq!(time(&written(1, &[0, 60])), read);
        assert_eq!(time(&written(2, &[0, 60, 7])), read);
        for wrong in [&[][..], &written(1, &[0]), &written(2, &[0, 0]), &written(3, &[0, 0])] {
            assert_eq!(time(wrong), None, "{wrong:?}");
        }
        let early = [&[1][..], &i64::MIN.to_be_bytes(), &nanoseconds, &[0, 0]].concat();
        assert_eq!(time(&early), None);
    }

    #[test]
    fn what_an_any_holds() {
        assert_eq!(any(b"\x0a\x03abc\x12\x02{}"), Some(&b"{}"[..]));
        assert_eq!(any(b"\x12\x00"), Some(&b""[..]));
        for none in
            [&b""[..], b"\x0a\x03abc", b"\x12\x05{}", b"\x12", b"\x10\x01", b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f"]
        {
            assert_eq!(any(none), None, "{none:?}");
        }
    }
}
