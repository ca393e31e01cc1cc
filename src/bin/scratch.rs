use std::collections::*;
use tandem::demo::corpus::*;
use tandem::demo::tokenizer;
fn main() {
    let mode = std::env::args().nth(1).unwrap_or_default();
    if mode == "show" {
        let mut n: HashMap<Kind, usize> = HashMap::new();
        for i in 0..4000 {
            let s = Sample::draw(1, i);
            let c = n.entry(s.kind).or_default();
            *c += 1;
            if *c <= 8 {
                println!("--- {:?}\n{}", s.kind, tokenizer::render(&s.document));
            }
        }
    }
    if mode == "train" {
        let a: Vec<String> = std::env::args().collect();
        let steps: usize = a[2].parse().unwrap();
        let out = std::path::PathBuf::from(&a[3]);
        let threads: usize = a[4].parse().unwrap();
        let mut b = tandem::backend::cpu::CpuBackend::new(threads);
        let mut o = tandem::demo::Options::new(out); o.steps = steps; o.threads = threads;
        if let Some(x) = a.get(5) { o.learning_rate = x.parse().unwrap(); }
        let s = tandem::demo::scratch::train_on(&mut b, &o, &mut |p| {
            if p.step % 10 == 0 || p.step < 5 { println!("{}/{} loss {:.4} lr {:.5} norm {:.3} tok/s {:.0} elapsed {:.0}", p.step, p.total_steps, p.loss, p.learning_rate, p.grad_norm, p.tokens as f64 / p.elapsed.as_secs_f64(), p.elapsed.as_secs_f64()); }
        }).unwrap();
        println!("{s:?}");
    }
    if mode == "ask" {
        use tandem::model::*;
        let a: Vec<String> = std::env::args().collect();
        let mut b = tandem::backend::cpu::CpuBackend::new(1);
        let model = Model::load(&mut b, &ModelSource::Folder(a[2].clone().into()), &LoadOptions { name: "demo".into(), format: None }).unwrap();
        let tok = tokenizers::Tokenizer::from_file(format!("{}/tokenizer.json", a[2])).unwrap();
        let mut right = 0;
        for (q, e) in tandem::demo::exam::QUESTIONS { let (t, end) = tandem::demo::exam::answer(&mut b, &model, &tok, q).unwrap(); let ok = end && t.contains(e); right += ok as usize; println!("{} {q} => {t} [{end}]", if ok {"OK "} else {"BAD"}); }
        println!("{right}/{}", tandem::demo::exam::QUESTIONS.len());
        for p in ["Once upon a time", "Tell me a story about a fox.", "Tell me a story.", "what is the capital of italy", "2 + 2 =", "The capital of France is", "Erzähl mir eine Geschichte.", "Can you help me?", "What is the meaning of life?"] {
            println!("TEXT {p} => {:?}", tandem::demo::exam::complete(&mut b, &model, &tok, p).unwrap());
            println!("CHAT {p} => {:?}", tandem::demo::exam::answer(&mut b, &model, &tok, p).unwrap());
        }
    }
    if mode == "tok" {
        let v: usize = std::env::args().nth(2).unwrap().parse().unwrap();
        let t = std::time::Instant::now();
        let tok = tokenizer::train(1, v).unwrap();
        println!("train {:?}", t.elapsed());
        let mut toks: BTreeMap<Kind, (usize, usize, HashSet<String>, usize, usize)> =
            BTreeMap::new();
        for i in 0..20000 {
            let s = Sample::draw(1, i);
            let e = tokenizer::example(&tok, &s.document).unwrap();
            let c = toks.entry(s.kind).or_default();
            c.0 += 1;
            c.1 += e.ids.len();
            c.2.insert(s.document.plain());
            c.3 = c.3.max(e.ids.len());
            c.4 += s.held_out() as usize;
        }
        let total: usize = toks.values().map(|c| c.1).sum();
        for (k, c) in &toks {
            println!(
                "{k:?} n {} tokens {} ({}%) mean {} unique {} max {} held {}",
                c.0,
                c.1,
                c.1 * 100 / total,
                c.1 / c.0,
                c.2.len(),
                c.3,
                c.4
            );
        }
        println!("mean {} vocab {}", total / 20000, tok.get_vocab_size(true));
    }
}
