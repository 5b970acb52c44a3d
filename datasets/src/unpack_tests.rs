use std::io::Cursor;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

fn zipped(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn tarred(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

fn unpacked(bytes: &[u8], limits: &Limits) -> Result<Vec<(String, Vec<u8>)>> {
    let folder = tempfile::tempdir().unwrap();
    let (archive, inside) = (folder.path().join("archive"), folder.path().join("inside"));
    std::fs::write(&archive, bytes).unwrap();
    std::fs::create_dir(&inside).unwrap();
    let files = unpack(&archive, &inside, limits, &|| false);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is written beside the folder");
    Ok(files?.into_iter().map(|file| (file.name, std::fs::read(file.path).unwrap())).collect())
}

#[test]
fn all_kinds_are_known_by_their_content() {
    let files: [(&str, &[u8]); 4] =
        [("b/two.pt", b"22"), ("one.pt", b"1"), ("b/.hidden", b"x"), ("__MACOSX/one.pt", b"x")];
    let expected = vec![("b/two.pt".to_owned(), b"22".to_vec()), ("one.pt".to_owned(), b"1".to_vec())];
    for bytes in [zipped(&files), tarred(&files), gzip(&tarred(&files))] {
        assert_eq!(unpacked(&bytes, &Limits::default()).unwrap(), expected);
    }
}

#[test]
fn what_is_no_archive_is_refused() {
    let cut = |bytes: Vec<u8>| bytes[..bytes.len() / 3].to_vec();
    let noise: Vec<u8> = (0..9000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for (bytes, code) in [
        (Vec::new(), "archive_invalid"),
        (b"garbage".repeat(1000), "archive_invalid"),
        (gzip(b"garbage"), "archive_invalid"),
        (b"\x1f\x8bgarbage".repeat(100), "archive_invalid"),
        (vec![0; 1024], "archive_invalid"),
        (zipped(&[]), "archive_invalid"),
        (cut(zipped(&[("a", &noise)])), "zip_invalid"),
        (cut(tarred(&[("a", &noise)])), "tar_invalid"),
        (tarred(&[("a", b"1"), ("./a", b"2")]), "tar_invalid"),
    ] {
        assert_eq!(unpacked(&bytes, &Limits::default()).unwrap_err().code(), code, "{:?}", bytes.first_chunk::<9>());
    }
}

#[test]
fn nothing_leaves_the_folder() {
    for name in ["../x", "/etc/x", "a/../../x", "C:\\x"] {
        assert_eq!(unpacked(&zipped(&[(name, b"1")]), &Limits::default()).unwrap_err().code(), "zip_unsafe_path");
        assert_eq!(unpacked(&tarred(&[(name, b"1")]), &Limits::default()).unwrap_err().code(), "tar_unsafe_path");
    }
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, "link.pt", "/etc/passwd").unwrap();
    let error = unpacked(&tar.into_inner().unwrap(), &Limits::default()).unwrap_err();
    assert_eq!(error.code(), "tar_unsafe_path");
}

#[test]
fn bombs_end_at_the_limits() {
    let bomb = vec![0; 8 << 20];
    let bytes = Limits { max_decompressed_bytes: 1 << 20, max_files: 2, ..Limits::default() };
    for archive in [zipped(&[("a", &bomb)]), gzip(&tarred(&[("a", &bomb)])), tarred(&[("a", &bomb)])] {
        assert_eq!(unpacked(&archive, &bytes).unwrap_err().code(), "limit_exceeded");
    }
    let many: [(&str, &[u8]); 3] = [("a", b"1"), ("b", b"1"), ("c", b"1")];
    for archive in [zipped(&many), tarred(&many)] {
        assert_eq!(unpacked(&archive, &bytes).unwrap_err().code(), "limit_exceeded");
    }
}

#[test]
fn it_stops_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("archive");
    std::fs::write(&archive, tarred(&[("a", b"1")])).unwrap();
    let error = unpack(&archive, folder.path(), &Limits::default(), &|| true).unwrap_err();
    assert_eq!(error.code(), "cancelled");
}
