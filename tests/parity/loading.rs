//! What is wrong with a checkpoint or an adapter is said, with file and tensor.

use std::borrow::Cow;
use std::collections::HashMap;

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize};
use tandem::backend::Backend;
use tandem::backend::reference::ReferenceBackend;
use tandem::domain::{AdapterSite, AdapterWeights};
use tandem::gguf::TensorType;
use tandem::model::{LoadOptions, Model, ModelError, ModelSource};

use super::golden;

type Tensors = HashMap<String, (Vec<usize>, Vec<f32>)>;

fn tensors(name: &str) -> Tensors {
    golden::tensors(&golden::path(&format!("models/{name}/model/model.safetensors")))
}

fn config(name: &str) -> Vec<u8> {
    std::fs::read(golden::path(&format!("models/{name}/model/config.json"))).unwrap()
}

/// The file of these tensors, each number written by `encode`.
fn file<const N: usize>(
    tensors: &Tensors,
    dtype: Dtype,
    encode: impl Fn(f32) -> [u8; N],
) -> Vec<u8> {
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            (name, shape, values.iter().flat_map(|&value| encode(value)).collect())
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        (*name, TensorView::new(dtype, shape.to_vec(), bytes).unwrap())
    });
    serialize(views, None).unwrap()
}

fn load(config: Vec<u8>, tensors: Vec<u8>) -> Result<Model<ReferenceBackend>, ModelError> {
    let source = ModelSource::Embedded { config: Cow::Owned(config), tensors: Cow::Owned(tensors) };
    let options = LoadOptions { name: "golden".to_owned(), format: None };
    Model::load(&mut ReferenceBackend, &source, &options)
}

fn refusal(change: impl Fn(&mut Tensors)) -> String {
    let mut tensors = tensors("llama_gqa");
    change(&mut tensors);
    let file = file(&tensors, Dtype::F32, f32::to_le_bytes);
    load(config("llama_gqa"), file).err().expect("the checkpoint is refused").to_string()
}

/// A head that was trained apart is used, whatever the configuration says of one matrix for both.
#[test]
fn a_head_that_differs_from_the_embedding_is_not_tied_to_it() {
    let logits = |tied: bool, head: Option<f32>| {
        let mut tensors = tensors("qwen2");
        if let Some(factor) = head {
            let (shape, table) = tensors["model.embed_tokens.weight"].clone();
            let values = table.iter().enumerate().map(|(i, x)| x * factor.powi(i as i32 % 3));
            tensors.insert("lm_head.weight".to_owned(), (shape, values.collect()));
        }
        let mut config: serde_json::Value = serde_json::from_slice(&config("qwen2")).unwrap();
        config["tie_word_embeddings"] = tied.into();
        let file = file(&tensors, Dtype::F32, f32::to_le_bytes);
        let model = load(config.to_string().into_bytes(), file).expect("a model");
        let b = &mut ReferenceBackend;
        let z = model.forward_spans(b, &[3, 4, 5], &[0..2, 2..3], &[], &[0, 1, 2]);
        b.download(&z)
    };
    let alone = logits(true, None);
    assert_eq!(logits(true, Some(1.0)), alone);
    assert_eq!(logits(true, Some(2.0)), logits(false, Some(2.0)));
    assert_ne!(logits(true, Some(2.0)), alone);
}

#[test]
fn a_head_of_its_own_is_written_with_a_configuration_that_says_so() {
    let mut tensors = tensors("qwen2");
    let (shape, values) = tensors["model.embed_tokens.weight"].clone();
    let head = values.iter().map(|x| -x).collect();
    tensors.insert("lm_head.weight".to_owned(), (shape, head));
    let source = ModelSource::Embedded {
        config: Cow::Owned(config("qwen2")),
        tensors: Cow::Owned(file(&tensors, Dtype::F32, f32::to_le_bytes)),
    };
    let options = LoadOptions { name: "golden".to_owned(), format: None };
    let model = Model::load(&mut ReferenceBackend, &source, &options).expect("a model");
    let folder = tempfile::tempdir().unwrap();
    let weights = model.weights(&source, None).expect("the source is there");
    weights.write_safetensors(folder.path(), TensorType::F32).expect("written");
    let written = std::fs::read(folder.path().join("config.json")).unwrap();
    let written: serde_json::Value = serde_json::from_slice(&written).unwrap();
    assert_eq!(written["tie_word_embeddings"], false);
}

const UP: &str = "model.layers.1.mlp.up_proj.weight";

#[test]
fn a_missing_tensor_is_named() {
    let message = refusal(|tensors| drop(tensors.remove(UP)));
    assert!(message.contains(UP) && message.contains("missing"), "{message}");
}

#[test]
fn a_superfluous_tensor_is_named() {
    let message = refusal(|tensors| {
        let bias = tensors["model.norm.weight"].clone();
        tensors.insert("model.norm.bias".to_owned(), bias);
    });
    assert!(message.contains("model.norm.bias") && message.contains("llama"), "{message}");
}

#[test]
fn a_misshapen_tensor_is_named_with_both_shapes() {
    let message = refusal(|tensors| tensors.get_mut(UP).unwrap().0.reverse());
    assert!(message.contains(UP) && message.contains("[64, 128]"), "{message}");
    assert!(message.contains("[128, 64]"), "{message}");
}

#[test]
fn a_tensor_that_is_not_finite_is_named() {
    let message = refusal(|tensors| tensors.get_mut(UP).unwrap().1[77] = f32::NAN);
    assert!(message.contains(UP) && message.contains("finite"), "{message}");
}

#[test]
fn a_truncated_file_and_a_huge_header_are_refused() {
    let mut whole = file(&tensors("llama_gqa"), Dtype::F32, f32::to_le_bytes);
    whole.truncate(whole.len() - 1);
    let message = load(config("llama_gqa"), whole.clone()).err().unwrap().to_string();
    assert!(message.contains("model.safetensors") && message.contains("whole"), "{message}");
    for length in [u64::MAX, 1 << 30, 12] {
        whole[..8].copy_from_slice(&length.to_le_bytes());
        let error = load(config("llama_gqa"), whole.clone()).err().unwrap();
        assert!(matches!(error, ModelError::BadFile { .. }), "{error}");
    }
    assert!(matches!(load(config("llama_gqa"), Vec::new()), Err(ModelError::BadFile { .. })));
}

#[test]
fn a_type_that_is_not_read_is_named() {
    let file = file(&tensors("llama_gqa"), Dtype::I32, |value| (value as i32).to_le_bytes());
    let message = load(config("llama_gqa"), file).err().unwrap().to_string();
    assert!(message.contains("i32"), "{message}");
}

#[test]
fn half_precision_files_are_read_as_what_they_hold() {
    let b = &mut ReferenceBackend;
    let original = tensors("llama_gqa");
    let rounded = |round: fn(f32) -> f32| -> Vec<u8> {
        let mut tensors = original.clone();
        tensors
            .values_mut()
            .flat_map(|(_, values)| values)
            .for_each(|value| *value = round(*value));
        file(&tensors, Dtype::F32, f32::to_le_bytes)
    };
    let pairs = [
        (
            file(&original, Dtype::BF16, |x| bf16::from_f32(x).to_le_bytes()),
            rounded(|x| bf16::from_f32(x).to_f32()),
        ),
        (
            file(&original, Dtype::F16, |x| f16::from_f32(x).to_le_bytes()),
            rounded(|x| f16::from_f32(x).to_f32()),
        ),
        (file(&original, Dtype::F64, |x| f64::from(x).to_le_bytes()), rounded(|x| x)),
    ];
    for (half, full) in pairs {
        let mut logits = |tensors| {
            let model = load(config("llama_gqa"), tensors).unwrap();
            let one = 0..4;
            let z = model.forward_spans(b, &[3, 9, 27, 81], std::slice::from_ref(&one), &[], &[3]);
            (tandem::backend::Backend::download(b, &z), model.info.fingerprint.clone())
        };
        let ((half, half_print), (full, full_print)) = (logits(half), logits(full));
        assert_eq!(half, full);
        assert_ne!(half_print, full_print, "the fingerprint is over the stored bytes");
    }
}

#[test]
fn names_without_their_prefix_buffers_and_copies_of_a_tied_head_are_read() {
    let b = &mut ReferenceBackend;
    let original = tensors("gpt2");
    let mut bare: Tensors = original
        .iter()
        .map(|(name, tensor)| {
            (name.strip_prefix("transformer.").unwrap().to_owned(), tensor.clone())
        })
        .collect();
    bare.insert("h.0.attn.bias".to_owned(), (vec![1, 1, 2, 2], vec![1.0; 4]));
    bare.insert("lm_head.weight".to_owned(), original["transformer.wte.weight"].clone());
    let bare = load(config("gpt2"), file(&bare, Dtype::F32, f32::to_le_bytes)).unwrap();
    let whole = golden::load(b, "gpt2");
    assert_eq!(bare.info.modules, whole.info.modules, "adapters find the same names");
    assert_eq!(bare.info.fingerprint, whole.info.fingerprint);
}

#[test]
fn a_tied_matrix_may_be_stored_as_the_head() {
    let original = tensors("gpt2");
    let mut renamed = original.clone();
    let table = renamed.remove("transformer.wte.weight").expect("an embedding");
    renamed.insert("lm_head.weight".to_owned(), table);
    let renamed = load(config("gpt2"), file(&renamed, Dtype::F32, f32::to_le_bytes)).unwrap();
    let whole = golden::load(&mut ReferenceBackend, "gpt2");
    assert_eq!(renamed.info.fingerprint, whole.info.fingerprint);
}

#[test]
fn a_folder_without_a_model_is_refused_with_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let load = || {
        let source = ModelSource::Folder(folder.path().to_owned());
        let options = LoadOptions { name: "golden".to_owned(), format: None };
        Model::load(&mut ReferenceBackend, &source, &options).err().unwrap().to_string()
    };
    assert!(load().contains("config.json"));
    std::fs::write(folder.path().join("config.json"), config("llama_gqa")).unwrap();
    assert!(load().contains("model.safetensors"));
    let index = r#"{"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}"#;
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    assert!(load().contains("plain file name"));
}

#[test]
fn what_a_model_tells_of_itself() {
    let model = golden::load(&mut ReferenceBackend, "llama_gqa");
    let info = &model.info;
    assert_eq!((&*info.name, &*info.family, &*info.dtype), ("golden", "llama", "f32"));
    assert_eq!((info.context_length, info.vocab_size, info.num_layers), (128, 320, 2));
    assert_eq!(info.size_bytes, 4 * info.parameters);
    assert_eq!((info.fingerprint.len(), &*model.eos_token_ids), (64, &[2][..]));
    let names: Vec<&str> = info.modules.iter().map(|module| &*module.name).collect();
    assert_eq!(names[..2], ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"]);
    assert_eq!((names.len(), names[14]), (15, "lm_head"));
    assert_eq!((info.modules[13].layer, info.modules[14].layer), (Some(1), None));
    assert_eq!(info.default_targets, ["q_proj", "v_proj"]);
}

#[test]
fn an_adapter_that_does_not_fit_is_refused_with_the_reason() {
    let b = &mut ReferenceBackend;
    let model = golden::load(b, "llama_gqa");
    let site = AdapterSite {
        module: "model.layers.0.self_attn.k_proj".to_owned(),
        r: 2,
        scaling: 1.0,
        a: vec![0.1; 2 * 64],
        b: vec![0.1; 32 * 2],
        magnitude: None,
    };
    let mut refused = |sites: Vec<AdapterSite>| {
        let weights =
            AdapterWeights { key: "a".to_owned(), sites, saved: Vec::new(), dropout: 0.0 };
        model.attach(b, &weights).err().map(|error| error.to_string())
    };
    assert_eq!(refused(vec![site.clone()]), None);
    let unknown = AdapterSite { module: "model.layers.9.mlp".to_owned(), ..site.clone() };
    assert!(refused(vec![unknown]).unwrap().contains("model.layers.9.mlp"));
    let short = AdapterSite { b: vec![0.1; 8], ..site.clone() };
    assert!(refused(vec![short]).unwrap().contains("holds 8 numbers"));
    let broken = AdapterSite { a: vec![f32::INFINITY; 2 * 64], ..site.clone() };
    assert!(refused(vec![broken]).unwrap().contains("not a finite number"));
    assert!(refused(vec![site.clone(), site]).unwrap().contains("twice"));
    assert!(refused(Vec::new()).unwrap().contains("no module"));
}
