plugins {
    id("com.android.application")
    id("org.jetbrains.kotlin.android")
}

android {
    namespace = "dev.tffpq.classify"
    compileSdk = 35
    defaultConfig {
        applicationId = "dev.tffpq.classify"
        minSdk = 24
        targetSdk = 35
        versionCode = 1
        versionName = "1"
    }
    // The runtime maps the file into memory, which a compressed one cannot be.
    androidResources { noCompress += "tflite" }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    kotlinOptions { jvmTarget = "17" }
}

dependencies {
    // The version of LiteRT that the exporter is tested with (ai-edge-litert in constraints.txt).
    implementation("com.google.ai.edge.litert:litert:2.3.0")
    implementation("androidx.activity:activity-ktx:1.9.3")
}
