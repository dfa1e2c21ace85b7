//! Images of modules as drivers take them.

use crate::simulated::check_elf;

/// The image, in a form that a driver can find the end of by itself: it is given no length.
pub(super) fn whole(image: &[u8]) -> Result<std::borrow::Cow<'_, [u8]>, String> {
    const FATBIN: u32 = 0xba55_ed50;
    let word = |at: usize| {
        let bytes = image.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        u32::from_le_bytes(bytes.unwrap_or_default())
    };
    if word(0) == FATBIN {
        // Magic, version and length of the header (16 bits each), length of the rest (64 bits).
        let needed = u64::from(word(4) >> 16) + (u64::from(word(12)) << 32) + u64::from(word(8));
        return match needed <= image.len() as u64 {
            true => Ok(image.into()),
            false => Err(format!("its header tells of {needed} bytes, it has {}", image.len())),
        };
    }
    if image.starts_with(b"\x7fELF") {
        check_elf(image)?;
        return Ok(image.into());
    }
    let text = image.iter().all(|&b| b.is_ascii_graphic() || b.is_ascii_whitespace());
    if text && image.windows(8).any(|window| window == b".version") {
        let mut image = image.to_vec();
        image.push(0);
        return Ok(image.into());
    }
    Err("it is neither a fatbin, nor an ELF file, nor PTX".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_that_a_driver_would_read_beyond_are_refused() {
        let mut fatbin = vec![0_u8; 80];
        fatbin[..4].copy_from_slice(&0xba55_ed50_u32.to_le_bytes());
        fatbin[4..8].copy_from_slice(&(16_u32 << 16 | 1).to_le_bytes());
        fatbin[8] = 64;
        assert!(whole(&fatbin).is_ok());
        assert!(whole(&fatbin[..79]).unwrap_err().contains("80 bytes, it has 79"));
        let ptx = b"// made by hand\n.version 8.0\n.target sm_80\n";
        assert_eq!(whole(ptx).unwrap().last(), Some(&0));
        assert!(whole(b"\x7fELF").is_err());
        assert!(whole(b"").is_err());
    }
}
