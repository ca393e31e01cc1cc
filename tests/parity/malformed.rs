//! Broken GGUF files: one sentence each, that names the file and the place.

use tandem::backend::reference::ReferenceBackend;
use tandem::gguf::{Gguf, Metadata, NewTensor, TensorType, Value, Writer};
use tandem::model::{LoadOptions, Model, ModelSource};

use super::golden;

fn whole() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let model = golden::load(&mut ReferenceBackend, "llama_gqa");
    let source = ModelSource::Folder(golden::path("models/llama_gqa/model"));
    let weights = model.weights(&source, None).unwrap();
    weights.write_gguf(&path, "x", TensorType::Q8_0, Vec::new()).unwrap();
    std::fs::read(path).unwrap()
}

/// The sentence with which a file of these bytes is refused.
fn refusal(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken.gguf");
    std::fs::write(&path, bytes).unwrap();
    let options = LoadOptions { name: "broken".to_owned(), format: None };
    let loaded = Model::load(&mut ReferenceBackend, &ModelSource::Gguf(path), &options);
    let message = loaded.err().expect("the file is refused").to_string();
    assert!(message.contains("broken.gguf"), "{message}");
    message
}

/// A header with these metadata and tensors, as a writer would never write it.
fn header(metadata: &[(&str, Value)], tensors: &[NewTensor]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    let values = metadata.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    let metadata = Metadata { file: "x".to_owned(), values };
    Writer::create(&path, &metadata, tensors).unwrap().finish().unwrap();
    std::fs::read(path).unwrap()
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|window| window == from).expect("it is there");
    let mut bytes = bytes.to_vec();
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = whole();
    let cuts = (0..200).chain((200..whole.len()).step_by(1999));
    for cut in cuts {
        refusal(&whole[..cut]);
    }
}

#[test]
fn a_header_with_any_byte_changed_is_read_or_refused() {
    let bytes = whole();
    for at in 0..2600 {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] ^= flip;
            let length = bytes.len() as u64;
            let _read_or_refused = Gguf::read("x", &bytes[..], length);
        }
    }
}

#[test]
fn alignments_and_sizes_that_cannot_be_are_refused() {
    for alignment in [0, 1, 12, 1 << 30] {
        let message = refusal(&header(&[("general.alignment", Value::Int(alignment))], &[]));
        assert!(message.contains("general.alignment"), "{message}");
    }
    let tensor = |shape: Vec<usize>| NewTensor {
        name: "blk.0.big".to_owned(),
        shape,
        kind: TensorType::F32,
    };
    let bytes = header(&[], &[tensor(vec![3, 5])]);
    let at = bytes.windows(8).rposition(|window| window == 3u64.to_le_bytes()).unwrap();
    for n in [0, 1 << 40, u64::MAX, u64::MAX / 5 + 1] {
        let mut bytes = bytes.clone();
        bytes[at..at + 8].copy_from_slice(&n.to_le_bytes());
        assert!(refusal(&bytes).contains("blk.0.big"));
    }
    assert!(refusal(&bytes).contains("beyond the end"), "no data follow this header");
}

#[test]
fn counts_and_lengths_take_no_memory_on_trust() {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(u64::MAX.to_le_bytes());
    bytes.extend(u64::MAX.to_le_bytes());
    assert!(refusal(&bytes).contains("claims"));
    // A string that claims 100 MB, in a file that has them.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("long.gguf");
    let mut bytes = header(&[("general.name", Value::Text("x".repeat(77)))], &[]);
    bytes = replaced(&bytes, &77u64.to_le_bytes(), &100_000_000u64.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(200_000_000).unwrap();
    let message = Gguf::open(&path).unwrap_err().to_string();
    assert!(message.contains("general.name") && message.contains("long.gguf"), "{message}");
    let list = header(&[("general.tags", Value::Ints(vec![1; 77]))], &[]);
    let list = replaced(&list, &77u64.to_le_bytes(), &(1u64 << 40).to_le_bytes());
    assert!(refusal(&list).contains("general.tags"));
    let nested = header(&[("general.tags", Value::Ints(vec![1; 77]))], &[]);
    let nested = replaced(&nested, &[9, 0, 0, 0, 5, 0, 0, 0], &[9, 0, 0, 0, 9, 0, 0, 0]);
    assert!(refusal(&nested).contains("list of lists"));
}

#[test]
fn metadata_that_are_missing_or_wrong_are_named() {
    let whole = whole();
    for (from, to, word) in [
        ("llama.block_count", "llama.block_c0unt", "llama.block_count"),
        ("llama.embedding_length", "llama.embedding_l0ngth", "llama.embedding_length"),
        ("general.architecture", "general.architectur3", "general.architecture"),
        ("token_embd.weight", "token_embd.weighs", "token_embd.weight"),
        ("blk.1.attn_q.weight", "blk.1.attn_q.weighs", "blk.1.attn_q.weight"),
        ("blk.1.attn_q.weight", "blk.0.attn_q.weight", "there twice"),
    ] {
        let message = refusal(&replaced(&whole, from.as_bytes(), to.as_bytes()));
        assert!(message.contains(word), "{message}");
    }
    let unknown = header(&[("general.architecture", Value::Text("mamba".to_owned()))], &[]);
    let message = refusal(&unknown);
    assert!(message.contains("mamba") && message.contains("llama, qwen2"), "{message}");
}

#[test]
fn a_scale_that_is_no_number_is_found_in_blocks() {
    let mut bytes = whole();
    let gguf = Gguf::read("x", &bytes[..], bytes.len() as u64).unwrap();
    let tensor = gguf.tensors.iter().find(|tensor| tensor.name == "blk.1.ffn_up.weight").unwrap();
    let at = tensor.offset as usize + 34;
    bytes[at..at + 2].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
    assert!(refusal(&bytes).contains("blk.1.ffn_up.weight"));
}
