//! The machine code in what ptxas writes: a 64-bit ELF file.

/// Code of the one kernel of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Code {
    /// 16 bytes an instruction.
    pub bytes: Vec<u8>,
    /// Jump tables, one after the other: offsets into the code.
    pub tables: Vec<u32>,
}

/// Reads the sections `.text.<kernel>` and, where the kernel has jump tables, `.nv.constant2.<kernel>`.
pub fn read(file: &[u8]) -> Result<Code, String> {
    let is_elf = file.starts_with(b"\x7fELF\x02\x01");
    let sections = if is_elf { sections(file) } else { None }.ok_or("not a cubin: no sections in it")?;
    let of = |prefix: &str| -> Vec<&[u8]> {
        sections.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, bytes)| *bytes).collect()
    };
    let texts = of(".text.");
    let [text] = texts[..] else { return Err(format!("{} kernels in a cubin, not 1", texts.len())) };
    if !text.len().is_multiple_of(16) {
        return Err(format!("{} bytes of code", text.len()));
    }
    let tables =
        of(".nv.constant2.").into_iter().flat_map(|bytes| bytes.chunks_exact(4).filter_map(|word| number(word, 0, 4)));
    Ok(Code { bytes: text.to_vec(), tables: tables.map(|n| n as u32).collect() })
}

/// Names and contents.
fn sections(file: &[u8]) -> Option<Vec<(String, &[u8])>> {
    let table = number(file, 0x28, 8)?;
    let (size, count, names) = (number(file, 0x3a, 2)?, number(file, 0x3c, 2)?, number(file, 0x3e, 2)?);
    let content = |i: usize| {
        let header = file.get(table + i * size..table + (i + 1) * size)?;
        let (kind, at, length) = (number(header, 4, 4)?, number(header, 0x18, 8)?, number(header, 0x20, 8)?);
        // A section without bytes in the file (NOBITS) has a length all the same.
        let bytes = if kind == 8 { &[] } else { file.get(at..at.checked_add(length)?)? };
        Some((number(header, 0, 4)?, bytes))
    };
    let (_, strings) = content(names)?;
    (0..count)
        .map(|i| {
            let (name, bytes) = content(i)?;
            let name = strings.get(name..)?.split(|b| *b == 0).next()?;
            Some((String::from_utf8_lossy(name).into_owned(), bytes))
        })
        .collect()
}

/// A little-endian number.
fn number(bytes: &[u8], at: usize, length: usize) -> Option<usize> {
    let bytes = bytes.get(at..at.checked_add(length)?)?;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of the sections given, each at the place where its bytes are, and the names last.
    fn file(sections: &[(&str, &[u8])]) -> Vec<u8> {
        let mut strings = vec![0];
        let mut body = Vec::new();
        let mut headers = Vec::new();
        let header = |name: usize, at: usize, length: usize| {
            let mut header = [0; 64];
            header[0..4].copy_from_slice(&(name as u32).to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(length as u64).to_le_bytes());
            header
        };
        for (name, bytes) in sections {
            headers.push(header(strings.len(), 64 + body.len(), bytes.len()));
            strings.extend(name.bytes().chain([0]));
            body.extend(*bytes);
        }
        headers.push(header(0, 64 + body.len(), strings.len()));
        body.extend(strings);
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[0x28..0x30].copy_from_slice(&(64 + body.len() as u64).to_le_bytes());
        file[0x3a..0x3c].copy_from_slice(&64u16.to_le_bytes());
        file[0x3c..0x3e].copy_from_slice(&(headers.len() as u16).to_le_bytes());
        file[0x3e..0x40].copy_from_slice(&(headers.len() as u16 - 1).to_le_bytes());
        file.extend(body);
        file.extend(headers.concat());
        file
    }

    #[test]
    fn code_and_jump_tables_are_found_by_name() {
        let code = [7; 32];
        let made = file(&[(".symtab", &[1]), (".text.k", &code), (".nv.constant2.k", &[16, 0, 0, 0, 0, 1, 0, 0])]);
        assert_eq!(read(&made), Ok(Code { bytes: code.to_vec(), tables: vec![16, 256] }));
    }

    #[test]
    fn what_is_no_cubin_is_refused() {
        let whole = file(&[(".text.k", &[0; 16])]);
        for cut in 0..whole.len() {
            assert!(read(&whole[..cut]).is_err(), "{cut} bytes");
        }
        assert!(read(&file(&[(".text.a", &[0; 16]), (".text.b", &[0; 16])])).is_err());
        assert!(read(&file(&[(".text.a", &[0; 15])])).is_err());
    }
}
